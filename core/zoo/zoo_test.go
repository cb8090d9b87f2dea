package zoo

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/architehc/nanochat/core/internal/fsx"
)

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestOrder finds a name as a path, then bundled, then cached, then on the network.
func TestOrder(t *testing.T) {
	t.Chdir(t.TempDir())
	data := content(size)
	s := serve(t, data, nil)
	m := s.entry()
	m.Status = Bundled
	z := open(t, t.TempDir(), m, func(o *Options) { o.Bundled = []string{"none", "models"} })
	want := func(source, path string) {
		t.Helper()
		found, err := z.Resolve(context.Background(), "tiny@1", Fetch{})
		if err != nil || found.Source != source || path != "" && found.Path != path {
			t.Errorf("found %+v, %v, want %s %s", found, err, source, path)
		}
	}
	want(FromNetwork, "")
	want(FromCache, z.blob(digestOf(data)))
	write(t, "models/tiny.gguf", data)
	want(FromBundle, filepath.Join("models", "tiny.gguf"))
	write(t, "models/tiny/tiny.gguf", data)
	want(FromBundle, filepath.Join("models", "tiny", "tiny.gguf"))
	write(t, "models/tiny/tiny.gguf", data[1:]) // another file, by its size
	want(FromBundle, filepath.Join("models", "tiny.gguf"))
	if err := os.Mkdir("tiny@1", 0o755); err != nil {
		t.Fatal(err)
	}
	want(FromBundle, "") // a directory is no model
	if err := os.Remove("tiny@1"); err != nil {
		t.Fatal(err)
	}
	write(t, "tiny@1", []byte("x"))
	want(FromPath, "tiny@1")
	if len(s.seen()) != 1 {
		t.Errorf("%d requests", len(s.seen()))
	}
	abs, _ := filepath.Abs("tiny@1")
	found, err := z.Resolve(context.Background(), (&url.URL{Scheme: "file", Path: abs}).String(), Fetch{})
	if err != nil || found.Path != abs {
		t.Errorf("file:// gave %+v, %v", found, err)
	}
}

// TestNames refuses names that could lead out of the cache, and names models that
// might have been meant.
func TestNames(t *testing.T) {
	dir := t.TempDir()
	z, err := New(Options{Cache: filepath.Join(dir, "cache"), Offline: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ref  string
		want Kind
		text string
		hint string
	}{
		{"../x", ErrName, "", ""}, {"/etc/x", ErrName, "", ""}, {`C:\x`, ErrName, "", ""}, {"nul", ErrName, "", ""}, {"COM1.gguf", ErrName, "", ""},
		{strings.Repeat("x", 300), ErrName, "", ""}, {"a\x00b", ErrName, "", ""}, {"", ErrName, "", ""}, {"a..b", ErrName, "", ""}, {"a@", ErrName, "", ""},
		{"a@../b", ErrName, "", ""}, {".hidden", ErrName, "", ""}, {"a b", ErrName, "", ""}, {"ä", ErrName, "", ""}, {"x.", ErrName, "", ""},
		{"nano-125-rust", ErrNotFound, "no such model in the index of 20", "did you mean nano-125m-rust?"},
		{"NANO-5M-RUST", ErrNotFound, "(3 models)", "did you mean nano-5m-rust?"},
		{"nano-5m-rust@99", ErrNotFound, "", "the index has revision 1"},
		{"nano5m", ErrNotFound, "", "did you mean nano-5m-rust?"}, {"Nano-7B", ErrNotFound, "", "did you mean nano-7b-rust?"},
		{"x.gguf", ErrNotFound, "", "a file needs no download"}, {"me/x", ErrName, "", "hub:OWNER/REPO/FILE.gguf"},
		{"https://a.example/x.gguf", ErrName, "", "--url URL --sha256 HEX"},
		{"https://huggingface.co/me/x/blob/main/sub/y.gguf?download=true", ErrName, "", "this file of the hub is hub:me/x/sub/y.gguf@main"},
		{"https://huggingface.co/me/x", ErrName, "", "--url URL"},
		{"something-else-entirely", ErrNotFound, "", "nanochat list"},
		{"nano-125m-rust", ErrPlanned, "not published yet; use nano-5m-rust", ""},
		{"nano-7b-rust", ErrPlanned, "not published yet; use nano-5m-rust", ""},
		{"nano-5m-rust", ErrNotFound, "comes with nanochat", "NANOCHAT_MODELS"},
		{"hub:a/b/c.gguf", ErrOffline, "", "NANOCHAT_OFFLINE"},
	} {
		_, err := z.Download(context.Background(), c.ref, Fetch{})
		checkKind(t, err, c.want, c.text)
		if e, ok := errors.AsType[*Error](err); ok && !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%.40q: hint %q, want %q", c.ref, e.Hint, c.hint)
		}
		if _, err := z.Remove(c.ref); c.want == ErrName && !errors.Is(err, ErrName) {
			t.Errorf("Remove %.40q: %v", c.ref, err)
		}
	}
	for _, path := range []string{"./nowhere", "nowhere.gguf", "a/b", "file:///nowhere", "file:x", dir + "/"} {
		if _, err := z.Resolve(context.Background(), path, Fetch{}); !errors.Is(err, ErrNotFound) || !IsPath(path) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if names, _ := os.ReadDir(dir); len(names) > 0 {
		t.Errorf("written: %v", names)
	}
}

// TestNoNetwork says at once that there is no such host, and tries again where a
// server answered before.
func TestNoNetwork(t *testing.T) {
	data := content(size)
	for _, gone := range []error{&net.DNSError{Err: "no such host", Name: "hub.example", IsNotFound: true}, os.NewSyscallError("connect", syscall.ECONNREFUSED)} {
		noNetwork(t, data, gone, false)
		noNetwork(t, data, gone, true)
	}
}

func noNetwork(t *testing.T, data []byte, gone error, answered bool) {
	t.Helper()
	n := 0
	s := serve(t, data, nil)
	z := open(t, t.TempDir(), s.entry(), func(o *Options) {
		o.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			if n++; n == 1 && answered {
				return &http.Response{StatusCode: 500, Body: http.NoBody, Request: r}, nil
			}
			return nil, &net.OpError{Op: "dial", Err: gone}
		})
	})
	_, err := get(t, z, data)
	checkKind(t, err, ErrNetwork, gone.Error())
	if want := map[bool]int{false: 1, true: 5}[answered]; n != want {
		t.Errorf("%v, answered before: %v: %d requests, want %d", gone, answered, n, want)
	}
}

// TestOffline never touches the network.
func TestOffline(t *testing.T) {
	data := content(size)
	s := serve(t, data, nil)
	dir := t.TempDir()
	dialled := 0
	off := func(o *Options) {
		o.Offline = true
		o.Transport = roundTrip(func(*http.Request) (*http.Response, error) { dialled++; return nil, errors.New("refused") })
	}
	_, err := get(t, open(t, dir, s.entry(), off), data)
	checkKind(t, err, ErrOffline, "tiny")
	if _, err := get(t, open(t, dir, s.entry()), data); err != nil {
		t.Fatal(err)
	}
	if _, err := get(t, open(t, dir, s.entry(), off), data); err != nil || dialled != 0 {
		t.Errorf("cached: %v, %d requests", err, dialled)
	}
}

// TestCache lists, verifies and removes.
func TestCache(t *testing.T) {
	ctx := context.Background()
	data := content(size)
	s := serve(t, data, nil)
	z := open(t, t.TempDir(), s.entry())
	state := func(want string) {
		t.Helper()
		if l := z.List(); len(l) == 0 || l[0].Name != "tiny" || l[0].State != want {
			t.Errorf("listed as %+v, want %s", l, want)
		}
	}
	state(StateAvailable)
	found, err := z.Resolve(ctx, "tiny", Fetch{})
	if err != nil {
		t.Fatal(err)
	}
	state(StateCached)

	// The same contents under a second name are kept once.
	other, err := z.From(ctx, "mine", s.URL+"/other.gguf?signature=secret", strings.ToUpper(digestOf(data)), Fetch{})
	if err != nil || other.Path != found.Path || len(s.seen()) != 1 {
		t.Errorf("From: %+v, %v, %d requests", other, err, len(s.seen()))
	}
	if b, err := os.ReadFile(z.manifest("mine@" + other.Revision)); err != nil || strings.Contains(string(b), "secret") || !strings.Contains(string(b), s.URL) {
		t.Errorf("the manifest: %s, %v", b, err)
	}
	if l := z.List(); len(l) != 2 || l[1].Name != "mine" || l[1].State != StateCached {
		t.Errorf("listed %+v", l)
	}
	if again, err := z.Resolve(ctx, "mine", Fetch{}); err != nil || again.Path != found.Path {
		t.Errorf("by its name: %+v, %v", again, err)
	}
	if n, err := z.Remove("tiny"); n != 0 || err != nil {
		t.Errorf("Remove of a name of two: %d, %v", n, err)
	}
	if n, err := z.Remove("mine"); n != size || err != nil {
		t.Errorf("Remove of the last name: %d, %v", n, err)
	}
	state(StateAvailable)
	_, err = z.Remove("mine")
	checkKind(t, err, ErrNotFound, "is not in the cache")

	for name, from := range map[string][2]string{"no digest": {"x", ""}, "taken": {"tiny", digestOf(data)}, "bad": {"../x", digestOf(data)}} {
		if _, err := z.From(ctx, from[0], s.URL, from[1], Fetch{}); err == nil {
			t.Errorf("From with %s", name)
		}
	}

	// Damage is found by Verify, and by every look-up if the size tells it.
	if found, err = z.Resolve(ctx, "tiny", Fetch{}); err != nil {
		t.Fatal(err)
	}
	if err := z.Verify(ctx, found, nil); err != nil {
		t.Error(err)
	}
	data[5] ^= 1
	write(t, found.Path, data)
	err = z.Verify(ctx, found, func(done, total int64) {})
	checkKind(t, err, ErrChecksum, digestOf(data))
	data[5] ^= 1
	if found, err = z.Resolve(ctx, "tiny", Fetch{Force: true}); err != nil || z.Verify(ctx, found, nil) != nil {
		t.Errorf("forced: %+v, %v", found, err)
	}
	write(t, found.Path, data[:9])
	if _, err := get(t, z, data); err != nil {
		t.Error(err)
	}

	// What was left behind long ago goes away with the next download.
	old := []string{filepath.Join(z.blobs(), "sha256-0.other.part"), filepath.Join(z.manifests(), ".x.json.tmp-1-0"), filepath.Join(z.blobs(), "sha256-2.x.part.json")}
	kept := filepath.Join(z.blobs(), "sha256-1.other.part")
	for _, path := range append(old, kept) {
		write(t, path, []byte("x"))
	}
	for _, path := range old {
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-25*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := z.Resolve(ctx, "tiny", Fetch{Force: true}); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, z.Cache()); !slices.Equal(left, []string{filepath.Base(kept)}) {
		t.Errorf("left: %v", left)
	}
}

// TestLinks does not write through a symbolic link, nor make a file through one.
func TestLinks(t *testing.T) {
	data := content(size)
	s := serve(t, data, nil)
	for _, suffix := range []string{"." + host() + partSuffix, lockSuffix} {
		for _, exists := range []bool{true, false} {
			z := open(t, t.TempDir(), s.entry())
			outside := filepath.Join(t.TempDir(), "outside")
			if exists {
				write(t, outside, nil)
			}
			write(t, filepath.Join(z.blobs(), "x"), nil)
			if err := os.Symlink(outside, z.blob(digestOf(data))+suffix); err != nil {
				t.Skip(err)
			}
			_, err := get(t, z, data)
			checkKind(t, err, ErrCache, "not a regular file")
			if st, err := os.Stat(outside); exists && (err != nil || st.Size() != 0) || !exists && err == nil {
				t.Errorf("outside: %v, %v", st, err)
			}
		}
	}
	// A blob or a name that is a link is replaced, not written through.
	z := open(t, t.TempDir(), s.entry())
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, outside, []byte("precious"))
	for _, path := range []string{z.blob(digestOf(data)), z.manifest("tiny@1")} {
		write(t, filepath.Join(filepath.Dir(path), "x"), nil)
		if err := os.Symlink(outside, path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := get(t, z, data); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "precious" {
		t.Errorf("outside: %q, %v", b, err)
	}
}

// TestBlobsAreReadOnly on a disk that knows rights.
func TestBlobsAreReadOnly(t *testing.T) {
	s := serve(t, content(size), nil)
	z := open(t, t.TempDir(), s.entry(), func(o *Options) { o.FS = fsx.OS() })
	found, err := get(t, z, content(size))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(found.Path); err != nil || runtime.GOOS != "windows" && st.Mode().Perm()&0o222 != 0 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if found, err = z.Resolve(context.Background(), "tiny", Fetch{Force: true}); err != nil || found.Source != FromNetwork {
		t.Errorf("forced: %+v, %v", found, err)
	}
	if n, err := z.Remove("tiny"); n != size || err != nil {
		t.Errorf("Remove: %d, %v", n, err)
	}
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		env   map[string]string
		cache string
		token string
	}{
		{map[string]string{"NANOCHAT_CACHE": "/c", "NANOCHAT_HOME": "/h", "XDG_CACHE_HOME": "/x", "HOME": "/home"}, "/c", ""},
		{map[string]string{"NANOCHAT_HOME": "/h", "XDG_CACHE_HOME": "/x", "HOME": "/home"}, "/h/models", ""},
		{map[string]string{"XDG_CACHE_HOME": "/x", "HOME": "/home", "HF_TOKEN": "hf"}, "/x/nanochat/models", "hf"},
		{map[string]string{"XDG_CACHE_HOME": "relative", "HOME": "/home", "NANOCHAT_TOKEN": "nc", "HF_TOKEN": "hf"}, "/home/.cache/nanochat/models", "nc"},
		{map[string]string{"HF_TOKEN": "hf", "NANOCHAT_ENDPOINT": "https://mirror.example"}, "", ""},
		{map[string]string{"HF_TOKEN": "hf", "NANOCHAT_ENDPOINT": "https://huggingface.co/"}, "", "hf"},
	} {
		if runtime.GOOS != "linux" {
			break
		}
		o, err := FromEnvironment(func(k string) string { return c.env[k] }, "/opt/bin/nanochat")
		if err != nil || o.Cache != c.cache || o.Token != c.token || o.Offline {
			t.Errorf("%v: cache %q, token %q, %v", c.env, o.Cache, o.Token, err)
		}
		if !slices.Equal(o.Bundled, []string{"/opt/share/nanochat/models", "/opt/bin/models", "/models"}) {
			t.Errorf("bundled models in %v", o.Bundled)
		}
	}
	for v, want := range map[string]bool{"1": true, "TRUE": true, "0": false, "no": false} {
		if o, err := FromEnvironment(func(k string) string { return map[string]string{"NANOCHAT_OFFLINE": v}[k] }, ""); err != nil || o.Offline != want {
			t.Errorf("NANOCHAT_OFFLINE=%s: %v, %v", v, o.Offline, err)
		}
	}
	_, err := FromEnvironment(func(k string) string { return map[string]string{"NANOCHAT_OFFLINE": "maybe"}[k] }, "")
	checkKind(t, err, ErrSetting, "maybe")
	z, err := New(Options{}) // nothing is known
	if err != nil {
		t.Fatal(err)
	}
	_, err = z.Download(context.Background(), "hub:a/b/c.gguf", Fetch{})
	checkKind(t, err, ErrCache, "no directory")
	for _, endpoint := range []string{"x", "ftp://x", "https://", "https://h?q=1", "https://user:secret@h\x7f"} {
		_, err := New(Options{Endpoint: endpoint})
		checkKind(t, err, ErrSetting, "endpoint")
	}
}

// TestIndex reads the built-in index, files, and files with faults.
func TestIndex(t *testing.T) {
	x, err := ParseIndex(builtin)
	if err != nil || len(x.Models) != 3 || x.find("nano-5m-rust", "") == nil {
		t.Fatalf("%+v, %v", x, err)
	}
	good := `{"updated": "2026-11", "models": [{"name": "a", "revision": "1", "status": "bundled", "file": "a.gguf", "licence": "MIT", "description": "x"}]}`
	path := filepath.Join(t.TempDir(), "index.json")
	write(t, path, []byte(good))
	for _, file := range []string{path, (&url.URL{Scheme: "file", Path: path}).String()} {
		if z, err := New(Options{IndexFile: file}); err != nil || len(z.Index().Models) != 1 {
			t.Errorf("%s: %v", file, err)
		}
	}
	_, err = New(Options{IndexFile: path + "x"})
	checkKind(t, err, ErrSetting, "no such file")
	for _, change := range [][2]string{
		{`"name": "a"`, `"name": "../a"`}, {`"revision": "1"`, `"revision": ""`}, {"a.gguf", "a.bin"}, {"a.gguf", "../a.gguf"}, {"bundled", "good"},
		{"bundled", "published"}, {`"licence"`, `"sha256": "ABC", "licence"`}, {`"licence"`, `"size": -1, "licence"`}, {`"licence"`, `"colour": 1, "licence"`},
		{`"licence"`, `"urls": ["https://x"], "licence"`}, {"}]}", "}"}, {"}]", `}, {"name": "a", "revision": "1", "status": "planned", "file": "a.gguf", "licence": "", "description": ""}]`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if _, err := ParseIndex([]byte(bad)); bad == good || !errors.Is(err, ErrSetting) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "abc", 0}, {"", "abc", 3}, {"kitten", "sitting", 3}, {"abc", "acb", 2}, {"x", "", 1}} {
		if got := distance(c.a, c.b); got != c.want || distance(c.b, c.a) != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
