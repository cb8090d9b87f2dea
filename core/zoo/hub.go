package zoo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// hubPrefix begins the name of a file on the hub.
const hubPrefix = "hub:"

// hubFile is hub:OWNER/REPO/FILE.gguf@REVISION; FILE may have directories.
type hubFile struct {
	repo     string // OWNER/REPO
	file     string
	revision string // a branch, a tag or a commit
}

// parseHub reads a name; without a revision it is main.
func parseHub(ref string) (hubFile, error) {
	file, revision, with := strings.Cut(strings.TrimPrefix(ref, hubPrefix), "@")
	if !with {
		revision = "main"
	}
	parts := strings.Split(file, "/")
	ok := len(parts) >= 3 && len(ref) <= 1000 && strings.HasSuffix(file, ".gguf")
	for _, s := range append(strings.Split(revision, "/"), parts...) {
		ok = ok && s != "" && s != "." && s != ".." && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' })
	}
	if !ok {
		return hubFile{}, &Error{Kind: ErrName, Model: fmt.Sprintf("%.120q", ref), What: "is not a file of the hub", Hint: "write hub:OWNER/REPO/FILE.gguf@REVISION"}
	}
	return hubFile{parts[0] + "/" + parts[1], strings.Join(parts[2:], "/"), revision}, nil
}

// hubAddress is the name of the file at an address of the hub, or "".
func hubAddress(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Host != hubHost {
		return ""
	}
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if len(parts) < 5 || parts[2] != "resolve" && parts[2] != "blob" {
		return ""
	}
	h, err := parseHub(hubPrefix + parts[0] + "/" + parts[1] + "/" + strings.Join(parts[4:], "/") + "@" + parts[3])
	if err != nil {
		return ""
	}
	return h.ref()
}

// ref is the whole name, with its revision.
func (h *hubFile) ref() string { return hubPrefix + h.repo + "/" + h.file + "@" + h.revision }

// url is where the file ("resolve") or its pointer ("raw") is.
func (h *hubFile) url(endpoint *url.URL, kind string) *url.URL {
	// The hub takes a revision with slashes as one segment.
	raw := strings.TrimRight(endpoint.EscapedPath(), "/") + "/" + escapeAll(h.repo) + "/" + kind + "/" + url.PathEscape(h.revision) + "/" + escapeAll(h.file)
	u := *endpoint
	u.RawPath = raw
	u.Path, _ = url.PathUnescape(raw)
	return &u
}

func escapeAll(path string) string {
	parts := strings.Split(path, "/")
	for i, s := range parts {
		parts[i] = url.PathEscape(s)
	}
	return strings.Join(parts, "/")
}

// downloadHub finds a file of the hub in the cache or downloads it. What a branch
// means is asked once; Force asks again.
func (z *Zoo) downloadHub(ctx context.Context, ref string, f Fetch) (Found, error) {
	h, err := parseHub(ref)
	if err != nil {
		return Found{}, err
	}
	w := wanted{ref: h.ref(), name: h.ref(), revision: h.revision, urls: []string{h.ref()}}
	if !f.Force {
		if found, ok := z.cached(w); ok {
			return found, nil
		}
	}
	if z.o.Offline || z.o.Cache == "" {
		return z.fetch(ctx, w, f) // which says so
	}
	c := z.client(w.ref)
	defer c.close()
	for failed := 0; ; {
		w.digest, w.size, err = c.digest(ctx, &h)
		pass, ok := errors.AsType[*fault](err)
		if ctx.Err() != nil {
			return Found{}, stopped(ctx, w.ref)
		}
		if err == nil {
			return z.fetch(ctx, w, f)
		}
		if !ok {
			return Found{}, err
		}
		if failed++; failed > z.o.Retries {
			return Found{}, pass.err
		}
		if z.sleep(ctx, backoff(failed, pass.after)) != nil {
			return Found{}, stopped(ctx, w.ref)
		}
	}
}

// digest asks the hub for the SHA-256 and the size that it keeps of a large file:
// in the head of the answer, else in the pointer that stands for it in the repository.
func (c *client) digest(ctx context.Context, h *hubFile) (string, int64, error) {
	w, ctx, cancel := c.watch(ctx)
	defer cancel(nil)
	// The answer leads to a storage server, which knows nothing of digests: that
	// redirect is not followed, one to a new name of the repository is.
	ask := &client{z: c.z, ref: c.ref, http: &http.Client{Transport: c.http.Transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if r.URL.Host != via[0].URL.Host || r.Response != nil && r.Response.Header.Get("X-Linked-Etag") != "" {
			return http.ErrUseLastResponse
		}
		return checkRedirect(r, via)
	}}}
	r, err := http.NewRequest(http.MethodHead, h.url(c.z.endpoint, "resolve").String(), nil)
	if err != nil {
		return "", 0, &Error{Kind: ErrName, Model: c.ref, What: "is not a file of the hub"}
	}
	resp, err := ask.do(ctx, r)
	if err != nil {
		return "", 0, err
	}
	resp.Body.Close()
	w.alive()
	digest := strings.Trim(strings.TrimPrefix(resp.Header.Get("X-Linked-Etag"), "W/"), `"`)
	size, err := strconv.ParseInt(resp.Header.Get("X-Linked-Size"), 10, 64)
	if validDigest(digest) && (err != nil || size > 0) {
		return digest, max(size, 0), nil
	}
	return ask.pointer(ctx, h)
}

// pointerForm is a Git LFS pointer; see git-lfs/docs/spec.md.
var pointerForm = regexp.MustCompile(`^version https://git-lfs\.github\.com/spec/v1\n(?:[^\n]*\n)*?oid sha256:([0-9a-f]{64})\nsize ([1-9][0-9]{0,17})\n`)

// pointer reads the digest in the repository: in the pointer, else in the list of
// checksums beside the file, which is what a mirror of plain files has.
func (c *client) pointer(ctx context.Context, h *hubFile) (string, int64, error) {
	b, err := c.small(ctx, h.url(c.z.endpoint, "raw"), 1<<10)
	if err != nil {
		return "", 0, err
	}
	if m := pointerForm.FindSubmatch(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))); m != nil {
		size, _ := strconv.ParseInt(string(m[2]), 10, 64)
		return string(m[1]), size, nil
	}
	sums := *h
	sums.file = path.Join(path.Dir(h.file), ChecksumsName)
	if b, err = c.small(ctx, sums.url(c.z.endpoint, "resolve"), 64<<10); err != nil {
		return "", 0, err
	}
	if digest := checksumOf(b, path.Base(h.file)); digest != "" {
		return digest, 0, nil
	}
	return "", 0, &Error{Kind: ErrNoHash, Model: c.ref, What: "the hub gives no SHA-256 of the file", Hint: "nanochat downloads only what it can check; pass the SHA-256: nanochat download NAME --url URL --sha256 HEX"}
}

// ChecksumsName is the file that lists the checksums of those beside it, as sha256sum
// writes it.
const ChecksumsName = "SHA256SUMS"

// checksumOf is the digest of a file in a list of checksums, or "".
func checksumOf(list []byte, name string) string {
	for line := range strings.Lines(string(list)) {
		digest, file, ok := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		if ok && validDigest(digest) && (file == " "+name || file == "*"+name) {
			return digest
		}
	}
	return ""
}

// small reads a file of at most limit bytes; nil if there is none, or a larger one.
func (c *client) small(ctx context.Context, u *url.URL, limit int64) ([]byte, error) {
	r, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, nil // an address that no server has
	}
	resp, err := c.do(ctx, r)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, &fault{err: c.failed(ctx, plainURL(u), err)}
	}
	if resp.StatusCode != http.StatusOK || int64(len(b)) > limit {
		return nil, nil
	}
	return b, nil
}
