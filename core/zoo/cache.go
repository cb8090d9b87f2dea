package zoo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// The cache:
//
//	manifests/NAME@REVISION.json    which blob a name means
//	manifests/hub-HEX.json          the same for the name of a file of the hub
//	blobs/sha256-HEX                a file; it appears by a rename when its digest is right
//	blobs/sha256-HEX.HOST.part      what was downloaded of it, under HOST's lock
//	blobs/sha256-HEX.HOST.part.json where from
//	blobs/sha256-HEX.HOST-PID.part  the same where locks do not work; never resumed
//	blobs/sha256-HEX.lock           locked while the blob is downloaded or removed

// manifest is what a name means.
type manifest struct {
	Ref      string `json:"ref"` // as it was asked for, with its revision
	Name     string `json:"name"`
	Revision string `json:"revision"`
	SHA256   string `json:"sha256"`
	Size     int64  `json:"size"` // bytes
	URL      string `json:"url"`
	Licence  string `json:"licence,omitempty"`
}

// stale is the age at which the remains of a killed process are removed.
const stale = 24 * time.Hour

func (z *Zoo) blobs() string              { return filepath.Join(z.o.Cache, "blobs") }
func (z *Zoo) manifests() string          { return filepath.Join(z.o.Cache, "manifests") }
func (z *Zoo) blob(digest string) string  { return filepath.Join(z.blobs(), "sha256-"+digest) }
func (z *Zoo) manifest(key string) string { return filepath.Join(z.manifests(), key+".json") }

// key is the file name of the manifest of what is wanted. The address of a file of
// the hub can be too long for a name, and holds slashes.
func (w *wanted) key() string {
	if strings.HasPrefix(w.ref, hubPrefix) {
		sum := sha256.Sum256([]byte(w.ref))
		return "hub-" + hex.EncodeToString(sum[:16])
	}
	return w.name + "@" + w.revision
}

// readManifest reads and checks a manifest.
func (z *Zoo) readManifest(key string) (manifest, bool) {
	var m manifest
	b, err := fsx.ReadFile(z.o.FS, z.manifest(key), 1<<16)
	if err != nil || json.Unmarshal(b, &m) != nil || !validDigest(m.SHA256) || m.Size <= 0 {
		return manifest{}, false
	}
	w := wanted{ref: m.Ref, name: m.Name, revision: m.Revision}
	return m, w.key() == key
}

// cachedManifests is all valid ones, by file name.
func (z *Zoo) cachedManifests() (out []manifest) {
	if z.o.Cache == "" {
		return nil
	}
	entries, err := z.o.FS.ReadDir(z.manifests())
	if err != nil { // it does not exist, or nothing can be read there
		return nil
	}
	for _, e := range entries {
		if key, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			if m, ok := z.readManifest(key); ok {
				out = append(out, m)
			}
		}
	}
	return out
}

// hasBlob says whether a blob is there with its size; 0 is any.
func (z *Zoo) hasBlob(digest string, size int64) (int64, bool) {
	st, err := z.o.FS.Stat(z.blob(digest))
	if err != nil || !st.Mode().IsRegular() || size != 0 && st.Size() != size {
		return 0, false
	}
	return st.Size(), true
}

// cached finds what is wanted in the cache, without the network. What the index
// promises comes before what a manifest remembers.
func (z *Zoo) cached(w wanted) (Found, bool) {
	if z.o.Cache == "" {
		return Found{}, false
	}
	if w.digest != "" {
		size, ok := z.hasBlob(w.digest, w.size)
		return Found{w.name, w.revision, z.blob(w.digest), FromCache, size, w.digest}, ok
	}
	m, ok := z.readManifest(w.key())
	if w.revision == "" {
		all := z.revisions(w.name)
		if ok = len(all) == 1; ok {
			m = all[0]
		}
	}
	if !ok {
		return Found{}, false
	}
	_, ok = z.hasBlob(m.SHA256, m.Size)
	return Found{m.Name, m.Revision, z.blob(m.SHA256), FromCache, m.Size, m.SHA256}, ok
}

// revisions is what the cache has of a name.
func (z *Zoo) revisions(name string) []manifest {
	return slices.DeleteFunc(z.cachedManifests(), func(m manifest) bool { return m.Name != name })
}

// The states of a model in List.
const (
	StateBundled   = "bundled"
	StateCached    = "cached"
	StatePartial   = "partial"   // a download was interrupted
	StateAvailable = "available" // it can be downloaded
	StatePlanned   = "planned"
	StateMissing   = "missing" // it should have come with the program
)

// Entry is one line of List.
type Entry struct {
	Name        string `json:"name"`
	Revision    string `json:"revision"`
	State       string `json:"state"`
	Size        int64  `json:"size,omitempty"`  // bytes
	Bytes       int64  `json:"bytes,omitempty"` // on this machine
	SHA256      string `json:"sha256,omitempty"`
	Licence     string `json:"licence,omitempty"`
	Description string `json:"description,omitempty"`
	Path        string `json:"path,omitempty"`
	Instead     string `json:"instead,omitempty"`
}

// Ref is the name with its revision, as Resolve takes it.
func (e *Entry) Ref() string {
	if strings.HasPrefix(e.Name, hubPrefix) { // which has it in its name
		return e.Name
	}
	return e.Name + "@" + e.Revision
}

// List is the models of the index and what else is in the cache. It needs no network.
func (z *Zoo) List() []Entry {
	var out []Entry
	listed := map[string]bool{}
	for i := range z.index.Models {
		m := &z.index.Models[i]
		listed[m.ref()] = true
		e := Entry{Name: m.Name, Revision: m.Revision, Size: m.Size, SHA256: m.SHA256, Licence: m.Licence, Description: m.Description, Instead: m.Instead}
		found, ok := z.bundled(m)
		e.State = StateBundled
		if !ok {
			e.State = StateCached
			found, ok = z.cached(wanted{ref: m.ref(), name: m.Name, revision: m.Revision, size: m.Size, digest: m.SHA256})
		}
		switch {
		case ok:
			e.Path, e.Size, e.Bytes = found.Path, found.Size, found.Size
		case m.Status == Planned:
			e.State = StatePlanned
		case len(m.URLs) == 0:
			e.State = StateMissing
		default:
			e.State = StateAvailable
			if n := z.partBytes(m.SHA256); n > 0 {
				e.State, e.Bytes = StatePartial, n
			}
		}
		out = append(out, e)
	}
	for _, m := range z.cachedManifests() {
		if listed[m.Ref] {
			continue
		}
		if _, ok := z.hasBlob(m.SHA256, m.Size); ok {
			out = append(out, Entry{Name: m.Name, Revision: m.Revision, State: StateCached, Size: m.Size, Bytes: m.Size, SHA256: m.SHA256,
				Licence: m.Licence, Path: z.blob(m.SHA256)})
		}
	}
	return out
}

// partBytes is how much of a blob this machine has downloaded.
func (z *Zoo) partBytes(digest string) int64 {
	if z.o.Cache == "" {
		return 0
	}
	st, err := z.o.FS.Stat(z.blob(digest) + "." + host() + partSuffix)
	if err != nil {
		return 0
	}
	return st.Size()
}

// Remove deletes a model from the cache, the remains of interrupted downloads
// included, and returns the bytes that were freed. NAME is all revisions. Bundled
// models belong to the installation and are not removed.
func (z *Zoo) Remove(ref string) (int64, error) {
	if z.o.Cache == "" {
		return 0, noCache(ref)
	}
	name, revision := "", ""
	if strings.HasPrefix(ref, hubPrefix) {
		h, err := parseHub(ref)
		if err != nil {
			return 0, err
		}
		ref = h.ref()
		name = ref
	} else {
		var err error
		if name, revision, err = splitRef(ref); err != nil {
			return 0, err
		}
	}
	digests, keep := map[string]bool{}, map[string]bool{}
	var keys []string
	for _, m := range z.cachedManifests() {
		w := wanted{ref: m.Ref, name: m.Name, revision: m.Revision}
		if m.Name == name && (revision == "" || m.Revision == revision) {
			keys = append(keys, w.key())
			digests[m.SHA256] = true
		} else {
			keep[m.SHA256] = true
		}
	}
	m := z.index.find(name, revision)
	if m != nil && m.SHA256 != "" {
		digests[m.SHA256] = true
	}
	var freed int64
	for _, key := range keys {
		if err := z.o.FS.Remove(z.manifest(key)); err != nil && !isMissing(err) {
			return freed, cacheError(ref, "remove", z.manifest(key), err)
		}
	}
	removed := len(keys) > 0
	for digest := range digests {
		if keep[digest] {
			continue
		}
		n, err := z.removeBlob(ref, digest)
		freed += n
		removed = removed || n > 0
		if err != nil {
			return freed, err
		}
	}
	if removed {
		return freed, nil
	}
	if found, ok := z.bundled(m); ok {
		return 0, &Error{Kind: ErrNotFound, Model: ref, What: "comes with nanochat and is not in the cache; nothing was removed: " + found.Path}
	}
	return 0, &Error{Kind: ErrNotFound, Model: ref, What: "is not in the cache " + z.o.Cache, Hint: "nanochat list shows what is"}
}

// removeBlob deletes a blob and its parts.
func (z *Zoo) removeBlob(ref, digest string) (freed int64, err error) {
	entries, err := z.o.FS.ReadDir(z.blobs())
	if isMissing(err) {
		return 0, nil
	}
	if err != nil {
		return 0, cacheError(ref, "read", z.blobs(), err)
	}
	prefix := "sha256-" + digest
	if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), prefix) }) {
		return 0, nil
	}
	l, held, err := z.lock(ref, digest)
	if err != nil {
		return 0, err
	}
	if held {
		return 0, &Error{Kind: ErrBusy, Model: ref, What: "another process is downloading it", Hint: "wait for it, or end it"}
	}
	defer z.unlock(l)
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || rest == lockSuffix {
			continue
		}
		path := filepath.Join(z.blobs(), e.Name())
		st, err := e.Info()
		if e := z.o.FS.Remove(path); e != nil && !isMissing(e) {
			return freed, cacheError(ref, "remove", path, e)
		}
		if err == nil {
			freed += st.Size()
		}
	}
	return freed, nil
}

// Verify reads a file that Resolve found and compares it with its SHA-256; without
// one there is nothing to compare. progress, if not nil, is told the bytes done.
func (z *Zoo) Verify(ctx context.Context, f Found, progress func(done, total int64)) error {
	if f.SHA256 == "" {
		return nil
	}
	file, err := z.o.FS.Open(f.Path)
	if err != nil {
		return cacheError(f.Name, "read", f.Path, err)
	}
	defer file.Close()
	h := sha256.New()
	_, err = hashFrom(ctx, h, file, -1, func(n int64) {
		if progress != nil {
			progress(n, f.Size)
		}
	})
	switch {
	case ctx.Err() != nil:
		return stopped(ctx, f.Name)
	case err != nil:
		return cacheError(f.Name, "read", f.Path, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != f.SHA256 {
		e := &Error{Kind: ErrChecksum, Model: f.Name, What: fmt.Sprintf("%s has SHA-256 %s, not %s", f.Path, got, f.SHA256)}
		if e.Hint = "install nanochat again"; f.Source == FromCache || f.Source == FromNetwork {
			e.Hint = fmt.Sprintf("nanochat download %s --force", f.Name)
		}
		return e
	}
	return nil
}

// hashFrom hashes up to limit bytes of r (all if negative) and stops when ctx ends.
func hashFrom(ctx context.Context, h hash.Hash, r io.Reader, limit int64, progress func(int64)) (int64, error) {
	buf := make([]byte, 1<<18)
	var done int64
	for limit < 0 || done < limit {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		b := buf
		if limit >= 0 {
			b = b[:min(int64(len(b)), limit-done)]
		}
		n, err := r.Read(b)
		h.Write(b[:n])
		done += int64(n)
		progress(done)
		if err == io.EOF {
			return done, nil
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func noCache(ref string) error {
	return &Error{Kind: ErrCache, Model: ref, What: "no directory for downloaded models is known", Hint: "set NANOCHAT_CACHE, or HOME"}
}
