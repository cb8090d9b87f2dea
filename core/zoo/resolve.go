package zoo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
)

// The places where a model was found.
const (
	FromPath    = "path"
	FromBundle  = "bundled"
	FromCache   = "cache"
	FromNetwork = "network"
)

// Found is a model's file on this machine.
type Found struct {
	// Name and Revision are empty for a path.
	Name     string `json:"name,omitempty"`
	Revision string `json:"revision,omitempty"`
	Path     string `json:"path"`
	Source   string `json:"source"`
	Size     int64  `json:"size"` // bytes
	// SHA256 is the digest that the file was checked against when it was downloaded,
	// or that the index promises; empty where there is none.
	SHA256 string `json:"sha256,omitempty"`
}

// Fetch is how to get a model.
type Fetch struct {
	// Force downloads again what is there already.
	Force bool
	// Progress, if not nil, is told how far a download is; see Progress.
	Progress func(Progress)
}

// filePath is the path of a file:// URL.
func filePath(ref string) (string, bool) {
	if !strings.HasPrefix(ref, "file://") {
		return "", false
	}
	u, err := url.Parse(ref)
	if err != nil || u.Host != "" && u.Host != "localhost" || u.Path == "" {
		return "", false
	}
	p := filepath.FromSlash(u.Path)
	if runtime.GOOS == "windows" && len(p) > 2 && p[2] == ':' { // /C:/models/x.gguf
		p = p[1:]
	}
	return p, true
}

// IsPath says whether ref is written like a file's path, so that it is never
// looked up by name.
func IsPath(ref string) bool {
	return !strings.HasPrefix(ref, hubPrefix) && (strings.HasPrefix(ref, "file:") || strings.ContainsAny(ref, `/\`) || strings.HasSuffix(ref, ".gguf"))
}

// Resolve finds the file of a model: a path or file:// URL, NAME or NAME@REVISION
// of the index, or hub:OWNER/REPO/FILE.gguf@REVISION. It downloads what is nowhere
// on this machine. Errors are *Error, or wrap the error of ctx.
func (z *Zoo) Resolve(ctx context.Context, ref string, f Fetch) (Found, error) {
	if found, ok, err := z.path(ref); ok || err != nil {
		return found, err
	}
	return z.Download(ctx, ref, f)
}

// path is the file that ref names. A directory gives way to a model of its name.
func (z *Zoo) path(ref string) (found Found, ok bool, err error) {
	if strings.HasPrefix(ref, hubPrefix) {
		return Found{}, false, nil
	}
	p, isURL := filePath(ref)
	if !isURL {
		p = ref
	}
	st, err := z.o.FS.Stat(p)
	if err == nil && !st.IsDir() {
		return Found{Path: p, Source: FromPath, Size: st.Size()}, true, nil
	}
	if !IsPath(ref) {
		return Found{}, false, nil
	}
	if err == nil {
		err = errors.New("is a directory")
	}
	return Found{}, false, &Error{Kind: ErrNotFound, Model: ref, What: "no model can be read there", Err: err, Hint: "name a .gguf file, or a model of nanochat list"}
}

// Download finds the file of a model by name, as Resolve does, and never takes the
// name for a path.
func (z *Zoo) Download(ctx context.Context, ref string, f Fetch) (Found, error) {
	if strings.HasPrefix(ref, hubPrefix) {
		return z.downloadHub(ctx, ref, f)
	}
	name, revision, err := splitRef(ref)
	if err != nil {
		return Found{}, err
	}
	m := z.index.find(name, revision)
	if found, ok := z.bundled(m); ok {
		return found, nil
	}
	w := wanted{ref: ref, name: name, revision: revision}
	if m != nil {
		w = wanted{ref: ref, name: name, revision: m.Revision, licence: m.Licence, size: m.Size, digest: m.SHA256, urls: m.URLs}
	}
	if !f.Force {
		if found, ok := z.cached(w); ok {
			return found, nil
		}
	}
	switch {
	case m == nil:
		return Found{}, z.unknown(ref, name)
	case m.Status == Planned:
		e := &Error{Kind: ErrPlanned, Model: ref, What: "not published yet"}
		if m.Instead != "" {
			e.What += "; use " + m.Instead
			e.Hint = "nanochat list shows what there is"
		}
		return Found{}, e
	case len(m.URLs) == 0:
		return Found{}, &Error{Kind: ErrNotFound, Model: ref,
			What: "comes with nanochat, and is not in " + strings.Join(z.o.Bundled, " or "),
			Hint: fmt.Sprintf("set NANOCHAT_MODELS to the directory that holds %s/%s, or install nanochat again", m.Name, m.File)}
	}
	return z.fetch(ctx, w, f)
}

// From downloads the file at an address, checks it against its SHA-256 and keeps it
// under a name that the index does not have.
func (z *Zoo) From(ctx context.Context, name, address, digest string, f Fetch) (Found, error) {
	n, revision, err := splitRef(name)
	if err != nil {
		return Found{}, err
	}
	if z.index.find(n, "") != nil {
		return Found{}, &Error{Kind: ErrName, Model: n, What: "the index has a model of this name", Hint: "choose another name"}
	}
	digest = strings.ToLower(digest)
	if !validDigest(digest) {
		return Found{}, &Error{Kind: ErrNoHash, Model: n, What: "an address needs the SHA-256 of its file, 64 hexadecimal digits", Hint: "ask whoever published the file for it"}
	}
	if revision == "" {
		revision = digest[:12]
	}
	w := wanted{ref: name, name: n, revision: revision, digest: digest, urls: []string{address}}
	if !f.Force {
		if found, ok := z.cached(w); ok {
			if _, ok := z.readManifest(w.key()); ok {
				return found, nil
			}
			return found, z.remember(w, found.Size) // the contents are known by another name
		}
	}
	return z.fetch(ctx, w, f)
}

// splitRef splits NAME@REVISION; the revision may be missing.
func splitRef(ref string) (name, revision string, err error) {
	name, revision, with := strings.Cut(ref, "@")
	if !ValidName(name) || with && !ValidName(revision) {
		e := &Error{Kind: ErrName, Model: fmt.Sprintf("%.120q", ref), What: "is not the name of a model",
			Hint: "names have letters, digits and . _ -, as in nano-5m-rust or nano-5m-rust@1; a path ends with .gguf, and a file of the hub is hub:OWNER/REPO/FILE.gguf"}
		if strings.HasPrefix(ref, "https://") || strings.HasPrefix(ref, "http://") {
			e.Hint = "for an address: nanochat download NAME --url URL --sha256 HEX"
			if h := hubAddress(ref); h != "" {
				e.Hint = "this file of the hub is " + h
			}
		}
		return "", "", e
	}
	return name, revision, nil
}

// bundled is the file that came with the program.
func (z *Zoo) bundled(m *Model) (Found, bool) {
	if m == nil || m.Status != Bundled {
		return Found{}, false
	}
	for _, dir := range z.o.Bundled {
		for _, p := range []string{filepath.Join(dir, m.Name, m.File), filepath.Join(dir, m.File)} {
			st, err := z.o.FS.Stat(p)
			if err == nil && st.Mode().IsRegular() && (m.Size == 0 || st.Size() == m.Size) {
				return Found{m.Name, m.Revision, p, FromBundle, st.Size(), m.SHA256}, true
			}
		}
	}
	return Found{}, false
}

// unknown is the error for a name that nothing has.
func (z *Zoo) unknown(ref, name string) error {
	e := &Error{Kind: ErrNotFound, Model: ref, What: fmt.Sprintf("no such model in the index of %s (%s)", z.index.Updated, plural(len(z.index.Models))),
		Hint: "nanochat list shows them all; a path ends with .gguf"}
	if z.o.Cache != "" {
		e.What += ", nor in " + z.o.Cache
	}
	if strings.HasSuffix(ref, ".gguf") {
		e.Hint = "a file needs no download; " + e.Hint
	}
	if near := z.index.nearest(name); near != "" {
		e.Hint = "did you mean " + near + "? " + e.Hint
		if near == name {
			e.Hint = fmt.Sprintf("the index has revision %s of it", z.index.find(name, "").Revision)
		}
	}
	return e
}

func plural(models int) string {
	if models == 1 {
		return "1 model"
	}
	return fmt.Sprintf("%d models", models)
}

// isMissing says whether an error of the disk means that there is no such file.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
