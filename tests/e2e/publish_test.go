package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// hubServer serves folders as the hub serves repositories, OWNER/REPO by folder. A
// plain one is a mirror of files that knows nothing of digests.
func hubServer(t *testing.T, folders map[string]string, plain bool) *httptest.Server {
	t.Helper()
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parts := strings.SplitN(strings.TrimPrefix(r.URL.Path, "/"), "/", 5)
		if len(parts) == 2 && parts[0] == "storage" { // where large files are
			http.ServeFile(w, r, filepath.Join(dir, parts[1]))
			return
		}
		if len(parts) != 5 || parts[2] != "resolve" || parts[3] != "main" || folders[parts[0]+"/"+parts[1]] == "" {
			http.NotFound(w, r)
			return
		}
		path := filepath.Join(folders[parts[0]+"/"+parts[1]], parts[4])
		b, err := os.ReadFile(path)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		if !plain && strings.HasSuffix(path, ".gguf") {
			sum := sha256.Sum256(b)
			digest := hex.EncodeToString(sum[:])
			if err := os.WriteFile(filepath.Join(dir, digest), b, 0o644); err != nil {
				t.Error(err)
			}
			w.Header().Set("X-Repo-Commit", strings.Repeat("0", 40))
			w.Header().Set("X-Linked-Etag", `"`+digest+`"`)
			w.Header().Set("X-Linked-Size", fmt.Sprint(len(b)))
			// Large files are on another host, which the hub's own program tells by its name.
			http.Redirect(w, r, strings.Replace(s.URL, "127.0.0.1", "localhost", 1)+"/storage/"+digest, http.StatusFound)
			return
		}
		http.ServeContent(w, r, path, time.Time{}, bytes.NewReader(b))
	}))
	t.Cleanup(s.Close)
	return s
}

// contents is the files of a folder.
func contents(t *testing.T, folder string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

// checkSums checks that SHA256SUMS has every other file, with its digest.
func checkSums(t *testing.T, files map[string]string) {
	t.Helper()
	listed := 0
	for line := range strings.Lines(files["SHA256SUMS"]) {
		digest, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if sum := sha256.Sum256([]byte(files[name])); hex.EncodeToString(sum[:]) != digest {
			t.Errorf("SHA256SUMS has %s for %s", digest, name)
		}
		listed++
	}
	if listed != len(files)-1 {
		t.Errorf("SHA256SUMS lists %d files of %v", listed, slices.Collect(maps.Keys(files)))
	}
}

// TestPublish makes a folder of a model, serves it, and downloads it again.
func TestPublish(t *testing.T) {
	folder := filepath.Join(dir, "published")
	args := []string{"publish", "tiny.gguf", "-o", "published", "--repo", "me/tiny", "--name", "tiny-one", "--licence", "Apache-2.0", "--tag", "rust",
		"--tag", "say \"hi\": #1", "--url", "https://mirror.example/tiny/"}
	r := ok(t, "", args...)
	if r.stdout != "" || !strings.Contains(r.stderr, "nanochat download hub:me/tiny/tiny-one.gguf") {
		t.Errorf("%q, %q", r.stdout, r.stderr)
	}
	files := contents(t, folder)
	checkSums(t, files)
	model, err := os.ReadFile(filepath.Join(dir, "tiny.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if files["tiny-one.gguf"] != string(model) {
		t.Error("the model is another one")
	}
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, []string{".gitattributes", "README.md", "SHA256SUMS", "config.json", "config.toml", "index.json",
		"tiny-one.gguf", "tokenizer.json"}) {
		t.Errorf("files: %v", got)
	}
	card := files["README.md"]
	for _, want := range []string{"---\nlicense: apache-2.0\nlibrary_name: nanochat\n", "\n# tiny-one\n", "hub:me/tiny/tiny-one.gguf", `- "say \"hi\": #1"`} {
		if !strings.Contains(card, want) {
			t.Errorf("the card has no %q:\n%s", want, card)
		}
	}
	var hub struct {
		ModelType string `json:"model_type"`
		Dim       int    `json:"hidden_size"`
		Vocab     int    `json:"vocab_size"`
	}
	if err := json.Unmarshal([]byte(files["config.json"]), &hub); err != nil || hub.ModelType != "nanochat" || hub.Dim != 64 || hub.Vocab != 300 {
		t.Errorf("config.json: %+v, %v", hub, err)
	}
	// The configuration makes a network of the same shape, the vocabulary the same ids.
	ok(t, "", "init", "published/config.toml", "again.gguf", "--seed", "7", "--force")
	ok(t, "", "publish", "again.gguf", "-o", "againpublished", "--repo", "me/again", "--licence", "MIT")
	if again := contents(t, filepath.Join(dir, "againpublished")); again["config.json"] != files["config.json"] {
		t.Errorf("another shape:\n%s\n%s", files["config.json"], again["config.json"])
	}
	text := "fn main() { }"
	if a, b := ok(t, text, "tokenizer", "encode", "tiny.gguf").stdout, ok(t, text, "tokenizer", "encode", "published/tokenizer.json").stdout; a != b {
		t.Errorf("ids %q and %q", a, b)
	}

	// The same again, refused without --force; files that publish no longer makes go, and
	// those of others stay.
	if r := run(t, "", args...); r.code != 1 || !strings.Contains(r.stderr, "published exists") || !strings.Contains(r.stderr, "hint: --force") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	if err := os.WriteFile(filepath.Join(folder, "mine.txt"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	other := slices.Clone(args)
	other[slices.Index(other, "tiny-one")] = "tiny-two"
	ok(t, "", append(other, "--force")...)
	if now := contents(t, folder); now["mine.txt"] != "mine" || now["tiny-one.gguf"] != "" || now["tiny-two.gguf"] != string(model) {
		t.Errorf("after another name: %v", slices.Sorted(maps.Keys(now)))
	}
	ok(t, "", append(args, "--force")...)
	now := contents(t, folder)
	delete(now, "mine.txt")
	if !maps.Equal(now, files) {
		t.Error("the same model and flags made other bytes")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".published.tmp-*")); err != nil || left != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}

	for _, plain := range []bool{false, true} {
		s := hubServer(t, map[string]string{"me/tiny": folder}, plain)
		env := []string{"NANOCHAT_ENDPOINT=" + s.URL, "NANOCHAT_CACHE=" + t.TempDir()}
		fetched := func(args ...string) {
			t.Helper()
			r := runEnv(t, env, "", args...)
			b, err := os.ReadFile(strings.TrimSpace(r.stdout))
			if r.code != 0 || err != nil || !bytes.Equal(b, model) {
				t.Errorf("plain %v, %v: exit %d, %v\n%s", plain, args, r.code, err, r.stderr)
			}
		}
		fetched("download", "hub:me/tiny/tiny-one.gguf@main")
		fetched("download", "hub:me/tiny/tiny-one.gguf", "--force")
		env = append(env, "NANOCHAT_CACHE="+t.TempDir(), "NANOCHAT_INDEX="+filepath.Join(folder, "index.json"))
		fetched("download", "tiny-one")
		if r := runEnv(t, append(env, "NANOCHAT_OFFLINE=1"), "", "generate", "tiny-one@1", "x", "-n", "1"); r.code != 0 {
			t.Errorf("generate: exit %d\n%s", r.code, r.stderr)
		}
	}
	hubPrograms(t, folder)
}

// hubPrograms lets the hub's own program read the card, and download the model from the
// server of these tests, which shows that this one is like the hub.
func hubPrograms(t *testing.T, folder string) {
	python := os.Getenv("NANOCHAT_PYTHON")
	if python == "" {
		t.Log("NANOCHAT_PYTHON is not set: the hub's own program was not tried")
		return
	}
	cmd := exec.Command(python, "-c", `
import sys
from huggingface_hub import ModelCard, hf_hub_download
card = ModelCard.load(sys.argv[1] + "/README.md")
assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "text-generation", card.data
assert card.data.tags == ["nanochat", "gguf", "ternary", "rust", 'say "hi": #1'], card.data.tags
path = hf_hub_download("me/tiny", "tiny-one.gguf", cache_dir=sys.argv[2])
assert open(path, "rb").read() == open(sys.argv[1] + "/tiny-one.gguf", "rb").read()
`, folder, t.TempDir())
	cmd.Env = append(os.Environ(), "HF_ENDPOINT="+hubServer(t, map[string]string{"me/tiny": folder}, false).URL, "HF_HUB_DISABLE_TELEMETRY=1", "HF_HOME="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestPublishRun publishes what a training left, under the text of a card that shows a
// picture.
func TestPublishRun(t *testing.T) {
	ok(t, "", "train", training(t, "publishrun", "4"), "--out", "torun", "--set", "data.licence='made | up'")
	for name, text := range map[string]string{"card.md": "---\nlicense: mit\n---\n# Mine\n\n![loss](curve.svg) ![far](https://a.example/b.svg) ![up](../x.svg) ![](gone.svg)\n",
		"curve.svg": "<svg/>"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := ok(t, "", "publish", "torun", "-o", "fromrun", "--repo", "me/run", "--licence", "Our own licence", "--card", "card.md", "--json")
	var p struct {
		Ref   string
		Entry struct{ SHA256, Name string }
		Files []struct{ Name, SHA256 string }
	}
	if err := json.Unmarshal([]byte(r.stdout), &p); err != nil || p.Ref != "hub:me/run/publishrun.gguf" || p.Entry.Name != "publishrun" {
		t.Errorf("%s, %v", r.stdout, err)
	}
	files := contents(t, filepath.Join(dir, "fromrun"))
	checkSums(t, files)
	if files["curve.svg"] != "<svg/>" || strings.Count(r.stderr, "warning:") != 2 || !strings.Contains(r.stderr, "../x.svg") || !strings.Contains(r.stderr, "gone.svg") {
		t.Errorf("%v\n%s", slices.Sorted(maps.Keys(files)), r.stderr)
	}
	if c := files["README.md"]; !strings.HasPrefix(c, "---\nlicense: other\nlicense_name: \"Our own licence\"\n") || strings.Count(c, "---\n") != 2 || !strings.HasSuffix(c, "(gone.svg)\n") {
		t.Errorf("the card:\n%s", c)
	}
	run, err := os.ReadFile(filepath.Join(dir, "torun", "model.gguf"))
	if err != nil || files["publishrun.gguf"] != string(run) {
		t.Errorf("the model is not that of the run: %v", err)
	}
	// What the file says of itself, without the card.
	ok(t, "", "publish", "torun", "-o", "fromrun2", "--repo", "me/run", "--licence", "mit")
	if c := contents(t, filepath.Join(dir, "fromrun2"))["README.md"]; !strings.Contains(c, "| steps | 4 |") || !strings.Contains(c, `| data | made \| up |`) {
		t.Errorf("the card:\n%s", c)
	}
}

func TestPublishMistakes(t *testing.T) {
	for _, c := range []struct {
		args, err, hint string
		code            int
	}{
		{"publish tiny.gguf -o p", "missing flags: --repo", "nanochat publish --help", 2},
		{"publish tiny.gguf -o p --repo me", "--repo me is not OWNER/REPO", "me/nano-5m-rust", 2},
		{"publish tiny.gguf -o p --repo me/../x", "is not OWNER/REPO", "", 2},
		{"publish tiny.gguf -o p --repo me/x", "names no licence", "--licence", 2},
		{"publish tiny.gguf -o p --repo me/x --licence MIT --name a/b", "--name a/b", "letters", 2},
		{"publish tiny.gguf -o p --repo me/x --licence MIT --name nul", "--name nul", "letters", 2},
		{"publish tiny.gguf -o p --repo me/x --licence MIT --revision ../1", "--revision ../1", "", 2},
		{"publish tiny.gguf -o p --repo me/x --licence MIT --url ftp://x", "--url ftp://x", "", 2},
		{"publish tiny.gguf -o folder/nowhere/p --repo me/x --licence MIT", "folder/nowhere/p", "", 1},
		{"publish tiny.gguf -o tiny.gguf --repo me/x --licence MIT", "tiny.gguf is a file", "", 1},
		{"publish tiny.gguf -o . --repo me/x --licence MIT --force", "holds something else", "does not exist yet", 1},
		{"publish tiny.gguf -o p --repo me/x --licence MIT --best", "--best", "", 2},
		{"publish tiny.gguf -o p --repo me/x --licence MIT --card absent.md", "absent.md", "text of the card", 1},
		{"publish flipped.gguf -o p --repo me/x --licence MIT", "the data was changed", "", 4},
		{"publish truncated.gguf -o p --repo me/x --licence MIT", "truncated.gguf", "", 4},
		{"publish absent.gguf -o p --repo me/x --licence MIT", "absent.gguf", "", 3},
		{"publish nano-125m-rust -o p --repo me/x --licence MIT", "not published yet; use nano-5m-rust", "", 3},
		{"publish folder -o p --repo me/x --licence MIT", "folder", "directory of a run", 1},
	} {
		r := run(t, "", strings.Fields(c.args)...)
		line, hint, _ := strings.Cut(r.stderr, "\n")
		if r.code != c.code || !strings.HasPrefix(line, "error: ") || !strings.Contains(line, c.err) || !strings.Contains(hint, c.hint) || strings.Contains(line, ".tmp-") {
			t.Errorf("nanochat %s: exit %d, want %d\n%s", c.args, r.code, c.code, r.stderr)
		}
		for _, name := range []string{"p", "." + "p.tmp-*"} {
			if left, _ := filepath.Glob(filepath.Join(dir, name)); left != nil {
				t.Errorf("nanochat %s: left %v", c.args, left)
			}
		}
	}
}

// TestVerifyAll checks what is on this machine, and goes on behind what is damaged.
func TestVerifyAll(t *testing.T) {
	_, requests, env := zooServer(t)
	if r := runEnv(t, env, "", "verify"); r.code != 1 || !strings.Contains(r.stderr, "no model came with nanochat or was downloaded") {
		t.Errorf("nothing there: exit %d, %s", r.code, r.stderr)
	}
	if r := runEnv(t, env, "", "verify", "tiny-zoo"); r.code != 3 || requests.Load() != 0 || !strings.Contains(r.stderr, "model tiny-zoo: is not on this machine") ||
		!strings.Contains(r.stderr, "hint: nanochat download tiny-zoo") {
		t.Errorf("not there: exit %d, %d requests, %s", r.code, requests.Load(), r.stderr)
	}
	path := strings.TrimSpace(runEnv(t, env, "", "download", "tiny-zoo").stdout)
	if r := runEnv(t, env, "", "verify"); r.code != 0 || !strings.Contains(r.stdout, path+": structure, weights and checksum are right") {
		t.Errorf("exit %d, %s%s", r.code, r.stdout, r.stderr)
	}
	r := runEnv(t, env, "", "verify", "flipped.gguf", "tiny.gguf", "tiny-zoo", "--json")
	var all []struct {
		Path string
		OK   bool
	}
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil || len(all) != 2 || all[0].Path != "tiny.gguf" || !all[1].OK || r.code != 4 ||
		!strings.HasSuffix(r.stderr, "error: 1 of 3 models are not right\n") {
		t.Errorf("exit %d, %v\n%s%s", r.code, err, r.stdout, r.stderr)
	}
}

// TestProxy downloads through a proxy, which gets no token in the clear.
func TestProxy(t *testing.T) {
	ok(t, "", "publish", "tiny.gguf", "-o", "proxied", "--repo", "me/tiny", "--name", "tiny", "--licence", "MIT", "--force")
	hub := hubServer(t, map[string]string{"me/tiny": filepath.Join(dir, "proxied")}, true)
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String()+r.Header.Get("Authorization"))
		hub.Config.Handler.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	cache := t.TempDir()
	env := []string{"NANOCHAT_ENDPOINT=http://hub.example", "NANOCHAT_TOKEN=secret", "NANOCHAT_CACHE=" + cache, "HTTP_PROXY=" + proxy.URL, "http_proxy=" + proxy.URL, "NO_PROXY=", "no_proxy="}
	r := runEnv(t, env, "", "download", "hub:me/tiny/tiny.gguf")
	if r.code != 0 || len(asked) == 0 {
		t.Fatalf("exit %d, %d requests\n%s", r.code, len(asked), r.stderr)
	}
	for _, a := range asked {
		if !strings.HasPrefix(a, "http://hub.example/me/tiny/") || strings.Contains(a, "secret") {
			t.Errorf("the proxy was asked for %s", a)
		}
	}
	// One that is not there, with a password that no error may tell.
	env = append(env, "HTTP_PROXY=http://user:secret@127.0.0.1:1", "http_proxy=http://user:secret@127.0.0.1:1", "NANOCHAT_CACHE="+t.TempDir())
	if r := runEnv(t, env, "", "download", "hub:me/tiny/tiny.gguf"); r.code != 5 || !strings.Contains(r.stderr, "check the connection and the proxy") || strings.Contains(r.stderr, "secret") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
}
