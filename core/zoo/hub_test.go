package zoo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// pointer is a Git LFS pointer to data.
func pointer(data []byte) string {
	return fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", digestOf(data), len(data))
}

// TestHub downloads a file of the hub, whose digest comes in a header or a pointer
// or not at all. The file itself comes from another server, which never gets the token.
func TestHub(t *testing.T) {
	data := content(size)
	const token = "secret-token"
	const ref = "hub:some/repo/sub dir/model.gguf@v1"
	for _, c := range []struct {
		name    string
		headers map[string]string
		raw     string
		want    Kind
		text    string
	}{
		{"header", map[string]string{"X-Linked-Etag": `"` + digestOf(data) + `"`, "X-Linked-Size": fmt.Sprint(size)}, "", "", ""},
		{"header without size", map[string]string{"X-Linked-Etag": `"` + digestOf(data) + `"`}, "", "", ""},
		{"pointer", map[string]string{"ETag": `"abc"`}, pointer(data), "", ""},
		{"pointer with more", nil, strings.Replace(pointer(data), "\noid", "\next-0-x sha256:1\noid", 1), "", ""},
		{"no digest", nil, "just text", ErrNoHash, "gives no SHA-256"},
		{"checksums", nil, "sums: " + digestOf(nil) + "  other.gguf\n" + digestOf(data) + "  model.gguf\n", "", ""},
		{"checksums of binary files", nil, "sums: " + digestOf(data) + " *model.gguf\r\n", "", ""},
		{"checksums of others", nil, "sums: " + digestOf(data) + "  a/model.gguf\n" + digestOf(data) + "  Xmodel.gguf\n" + "123  model.gguf\n", ErrNoHash, ""},
		{"checksums without end", nil, "sums: " + strings.Repeat(digestOf(nil)+"  x\n", 1000) + digestOf(data) + "  model.gguf\n", ErrNoHash, ""},
		{"wrong checksum", nil, "sums: " + digestOf(nil) + "  model.gguf\n", ErrChecksum, digestOf(nil)},
		{"digest of another kind", map[string]string{"X-Linked-Etag": `"0123456789abcdef0123456789abcdef01234567"`}, "", ErrNoHash, ""},
		{"wrong digest", map[string]string{"X-Linked-Etag": `"` + digestOf(nil) + `"`, "X-Linked-Size": fmt.Sprint(size)}, "", ErrChecksum, digestOf(nil)},
		{"wrong size", map[string]string{"X-Linked-Etag": `"` + digestOf(data) + `"`, "X-Linked-Size": "5"}, "", ErrChecksum, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := serve(t, data, nil)
			hub := serve(t, nil, nil)
			hub.behave = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Authorization") != "Bearer "+token {
					t.Errorf("%s %s without the token", r.Method, r.URL)
				}
				switch r.URL.EscapedPath() {
				case "/mirror/some/repo/resolve/v1/sub%20dir/model.gguf":
					http.Redirect(w, r, "/mirror/some/renamed/resolve/v1/sub%20dir/model.gguf", http.StatusTemporaryRedirect)
				case "/mirror/some/renamed/resolve/v1/sub%20dir/model.gguf":
					for k, v := range c.headers {
						w.Header().Set(k, v)
					}
					http.Redirect(w, r, store.URL+"/blob?signature=secret", http.StatusFound)
				case "/mirror/some/repo/raw/v1/sub%20dir/model.gguf":
					if strings.HasPrefix(c.raw, "sums: ") {
						w.WriteHeader(404)
					} else {
						fmt.Fprint(w, c.raw)
					}
				case "/mirror/some/repo/resolve/v1/sub%20dir/SHA256SUMS":
					if sums, ok := strings.CutPrefix(c.raw, "sums: "); ok {
						fmt.Fprint(w, sums)
					} else {
						w.WriteHeader(404)
					}
				default:
					t.Errorf("asked for %s", r.URL.EscapedPath())
					w.WriteHeader(404)
				}
				return true
			}
			dir := t.TempDir()
			set := func(o *Options) { o.Endpoint, o.Token = hub.URL+"/mirror/", token }
			found, err := open(t, dir, store.entry(), set).Resolve(context.Background(), ref, Fetch{})
			sound(t, dir)
			checkKind(t, err, c.want, c.text)
			for _, r := range store.seen() {
				if r.Header.Get("Authorization") != "" {
					t.Error("the token went to another server")
				}
			}
			if c.want != "" {
				return
			}
			if found.SHA256 != digestOf(data) || found.Size != size || found.Source != FromNetwork {
				t.Errorf("found %+v", found)
			}
			n := len(hub.seen())
			z := open(t, dir, store.entry(), set, func(o *Options) { o.Offline = true })
			if found, err = z.Resolve(context.Background(), ref, Fetch{}); err != nil || found.Source != FromCache || len(hub.seen()) != n {
				t.Errorf("once more: %+v, %v, %d requests", found, err, len(hub.seen())-n)
			}
			if _, err := z.Remove("hub:some/repo/sub dir/model.gguf"); !errors.Is(err, ErrNotFound) {
				t.Errorf("Remove of another revision: %v", err)
			}
			if n, err := z.Remove(ref); n != size || err != nil {
				t.Errorf("Remove: %d, %v", n, err)
			}
		})
	}
}

// TestToken sends the token to the endpoint only, and not in the clear.
func TestToken(t *testing.T) {
	got := ""
	inner := roundTrip(func(r *http.Request) (*http.Response, error) {
		got = r.Header.Get("Authorization")
		return nil, errors.New("no network")
	})
	for _, c := range []struct {
		endpoint, asked string
		want            bool
	}{
		{"https://hub.example", "https://hub.example/x", true},
		{"https://hub.example", "https://hub.example:444/x", false},
		{"https://hub.example", "http://hub.example/x", false},
		{"https://hub.example", "https://cdn.hub.example/x", false},
		{"https://hub.example", "https://hub.example.evil.example/x", false},
		{"http://mirror.example", "http://mirror.example/x", false},
		{"http://127.0.0.1:80", "http://127.0.0.1:80/x", true},
		{"http://localhost:80", "http://localhost:80/x", true},
	} {
		endpoint, _ := url.Parse(c.endpoint)
		r, err := http.NewRequest("GET", c.asked, nil)
		if err != nil {
			t.Fatal(err)
		}
		(&bearer{inner, endpoint, "secret"}).RoundTrip(r)
		if (got == "Bearer secret") != c.want || r.Header.Get("Authorization") != "" {
			t.Errorf("endpoint %s, asked %s: sent %q", c.endpoint, c.asked, got)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRedirects(t *testing.T) {
	request := func(s string) *http.Request {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return &http.Request{URL: u}
	}
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"https://a/x", "https://b/x", true}, {"http://a/x", "https://a/x", true}, {"http://a/x", "http://b/x", true},
		{"https://a/x", "http://a/x", false}, {"http://a/x", "ftp://a/x", false},
	} {
		if err := checkRedirect(request(c.to), []*http.Request{request(c.from)}); (err == nil) != c.ok {
			t.Errorf("%s to %s: %v", c.from, c.to, err)
		}
	}
}

// TestHubNames refuses names that could lead elsewhere.
func TestHubNames(t *testing.T) {
	for _, bad := range []string{"hub:", "hub:a/b", "hub:a/b/c.bin", "hub:a//c.gguf", "hub:a/../c.gguf", "hub:../b/c.gguf", "hub:a/b/c.gguf@", "hub:a/b/c.gguf@..",
		"hub:a/b/c.gguf@refs/../x", "hub:a/b/./c.gguf", `hub:a/b\c/d.gguf`, "hub:a/b/\x00.gguf", "hub:a/b/" + strings.Repeat("c", 1000) + ".gguf"} {
		_, err := open(t, t.TempDir(), (&server{Server: &httptest.Server{}}).entry(), func(o *Options) { o.Offline = true }).Resolve(context.Background(), bad, Fetch{})
		if !errors.Is(err, ErrName) {
			t.Errorf("%.60q: %v", bad, err)
		}
	}
	h, err := parseHub("hub:a/b/c d/e.gguf@refs/pr/1")
	base, _ := url.Parse("https://hub.example/m%20n")
	if got := h.url(base, "resolve").String(); err != nil || got != "https://hub.example/m%20n/a/b/resolve/refs%2Fpr%2F1/c%20d/e.gguf" {
		t.Errorf("%s, %v", got, err)
	}
	if h, err = parseHub("hub:a/b/e.gguf"); err != nil || h.ref() != "hub:a/b/e.gguf@main" {
		t.Errorf("%+v, %v", h, err)
	}
}
