package zoo

import (
	"encoding/json"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzNames: whatever is asked for is refused, or is a plain file name in the cache and an
// address below the endpoint.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"nano-5m-rust@1", "hub:a/b/c d/e.gguf@refs/pr/1", "hub:a/b/../c.gguf", `a\b`, "nul.x", "../x", "a@..", "hub:a/b/%2e%2e/x.gguf", "hub:a/b/x.gguf@v1?x#y"} {
		f.Add(s)
	}
	endpoint, err := url.Parse("https://hub.example/base")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		var w wanted
		if strings.HasPrefix(ref, hubPrefix) {
			h, err := parseHub(ref)
			if err != nil {
				return
			}
			if again, err := parseHub(h.ref()); err != nil || again != h {
				t.Fatalf("%q is %+v, and that %+v, %v", ref, h, again, err)
			}
			for _, kind := range []string{"resolve", "raw"} {
				u, err := url.Parse(h.url(endpoint, kind).String())
				if err != nil || u.Host != "hub.example" || u.RawQuery != "" || u.Fragment != "" || !strings.HasPrefix(u.JoinPath().EscapedPath(), "/base/"+escapeAll(h.repo)+"/"+kind+"/") {
					t.Fatalf("%q is at %v, %v", ref, u, err)
				}
			}
			w = wanted{ref: h.ref(), name: h.ref(), revision: h.revision}
		} else {
			name, revision, err := splitRef(ref)
			if err != nil {
				return
			}
			w = wanted{ref: ref, name: name, revision: revision}
		}
		if key := w.key(); filepath.Base(key) != key || !filepath.IsLocal(key+".json") || len(key) > 250 || strings.ContainsAny(key, "/\\:\x00") {
			t.Fatalf("%q is kept as %q", ref, key)
		}
	})
}

// FuzzAnswers: what a server says of a file has no meaning, or one that can be used.
func FuzzAnswers(f *testing.F) {
	f.Add("bytes 5-9/10", pointer(content(9)))
	f.Add("bytes */10", digestOf(nil)+"  model.gguf\n")
	f.Add("bytes 9223372036854775808-1/2", string(builtin))
	f.Fuzz(func(t *testing.T, header, body string) {
		if start, size, ok := contentRange(header); ok && (start < -1 || size < 0) {
			t.Fatalf("%q: %d of %d", header, start, size)
		}
		if d := checksumOf([]byte(body), "model.gguf"); d != "" && (!validDigest(d) || !strings.Contains(body, d)) {
			t.Fatalf("%q: %q", body, d)
		}
		if m := pointerForm.FindStringSubmatch(body); m != nil && !validDigest(m[1]) {
			t.Fatalf("%q: %q", body, m)
		}
		x, err := ParseIndex([]byte(body))
		if err != nil {
			return
		}
		for i := range x.Models {
			if m := &x.Models[i]; !ValidName(m.Name) || !ValidName(m.Revision) || !ValidName(m.File) || m.SHA256 != "" && !validDigest(m.SHA256) {
				t.Fatalf("%q: %+v", body, m)
			}
		}
		b, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseIndex(b); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
	})
}
