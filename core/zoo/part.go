package zoo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/architehc/nanochat/core/internal/fsx"
)

const (
	partSuffix = ".part"
	lockSuffix = ".lock"
)

// host is a tag of this machine in file names: locks of some network file systems
// hold among the processes of one machine only.
func host() string {
	name, err := os.Hostname()
	if err != nil {
		name = "unknown"
	}
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:4])
}

// lock locks a blob without waiting; held says that somebody else has it. A nil
// lock file means that locks do not work here.
func (z *Zoo) lock(ref, digest string) (l fsx.File, held bool, err error) {
	path := z.blob(digest) + lockSuffix
	if err := z.notALink(ref, path); err != nil {
		return nil, false, err
	}
	for range 100 { // the holder removes the file, so that it may change under us
		l, err := z.o.FS.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			return nil, false, cacheError(ref, "lock", path, err)
		}
		ok, err := fsx.TryLock(l)
		if err != nil || !ok {
			l.Close()
			if errors.Is(err, errors.ErrUnsupported) {
				return nil, false, nil
			}
			if err != nil {
				return nil, false, cacheError(ref, "lock", path, err)
			}
			return nil, true, nil
		}
		if z.isAt(l, path) {
			if z.lies(path) {
				l.Close()
				return nil, false, nil
			}
			return l, false, nil
		}
		l.Close()
	}
	return nil, true, nil
}

// isAt says whether an open file is still the one at path.
func (z *Zoo) isAt(f fsx.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := z.o.FS.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// lies says whether the lock of a file that is locked is granted once more.
func (z *Zoo) lies(path string) bool {
	f, err := z.o.FS.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return true
	}
	defer f.Close()
	again, err := fsx.TryLock(f)
	return again || err != nil
}

func (z *Zoo) unlock(l fsx.File) {
	if l != nil {
		// Removed while it is locked: who opened it before finds out with isAt.
		_ = z.o.FS.Remove(l.Name())
		l.Close()
	}
}

// private numbers the parts of this process where locks do not work.
var private atomic.Int64

// part is a file that is being downloaded. Only one process writes to it.
type part struct {
	z    *Zoo
	w    *wanted
	path string
	file fsx.File
	lock fsx.File // nil: the part is private
	hash hash.Hash
	have int64  // bytes in the file and in the hash
	from origin // where they come from
	old  bool   // some are from an earlier run
}

// origin is what a server says about the version of a file that it sends.
type origin struct {
	URL  string `json:"url"`
	ETag string `json:"etag,omitempty"` // strong ones only
}

// openPart waits for the blob's lock and opens the part, with what an earlier run
// has left in it. It returns nil when another process has finished the blob.
func (z *Zoo) openPart(ctx context.Context, w *wanted, again bool, report func(state string, done int64)) (p *part, err error) {
	for _, dir := range []string{z.blobs(), z.manifests()} {
		if err := z.o.FS.MkdirAll(dir, 0o777); err != nil {
			return nil, cacheError(w.ref, "make", dir, err)
		}
	}
	p = &part{z: z, w: w, hash: sha256.New()}
	for waited := false; ; waited = true {
		held := false
		if p.lock, held, err = z.lock(w.ref, w.digest); err != nil {
			return nil, err
		}
		if _, ok := z.hasBlob(w.digest, w.size); ok && (!again || waited) {
			z.unlock(p.lock)
			return nil, nil
		}
		if !held {
			break
		}
		report(Waiting, 0)
		if z.sleep(ctx, 50*time.Millisecond) != nil {
			return nil, stopped(ctx, w.ref)
		}
	}
	z.sweep()
	p.path = z.blob(w.digest) + "." + host()
	flags := os.O_RDWR | os.O_CREATE
	if p.lock == nil {
		p.path += fmt.Sprintf("-%d-%d", os.Getpid(), private.Add(1))
		flags |= os.O_EXCL
	}
	p.path += partSuffix
	if err := p.open(ctx, flags, report); err != nil {
		p.close(p.lock == nil)
		return nil, err
	}
	return p, nil
}

// open opens the file and hashes what is in it.
func (p *part) open(ctx context.Context, flags int, report func(string, int64)) (err error) {
	fsys := p.z.o.FS
	if err := p.z.notALink(p.w.ref, p.path); err != nil {
		return err
	}
	if p.file, err = fsys.OpenFile(p.path, flags, 0o666); err != nil {
		return cacheError(p.w.ref, "open", p.path, err)
	}
	st, err := p.file.Stat()
	if err != nil {
		return cacheError(p.w.ref, "read", p.path, err)
	}
	if st.Size() == 0 {
		return nil
	}
	if st.Size() > p.w.limit(p.z) {
		return p.restart()
	}
	if b, err := fsx.ReadFile(fsys, p.path+".json", 1<<12); err == nil {
		var from origin
		if json.Unmarshal(b, &from) == nil {
			p.from = from
		}
	}
	p.old = true
	p.have, err = hashFrom(ctx, p.hash, io.NewSectionReader(p.file, 0, st.Size()), st.Size(), func(n int64) { report(Checking, n) })
	switch {
	case ctx.Err() != nil:
		return stopped(ctx, p.w.ref)
	case err != nil: // it cannot be read: begin anew
		return p.restart()
	}
	return nil
}

// notALink refuses a symbolic link in the place of a file that is to be made among the
// blobs: it would be made, or written to, elsewhere.
func (z *Zoo) notALink(ref, path string) error {
	entries, err := z.o.FS.ReadDir(z.blobs())
	if err != nil {
		return cacheError(ref, "read", z.blobs(), err)
	}
	for _, e := range entries {
		if e.Name() == filepath.Base(path) && !e.Type().IsRegular() {
			return &Error{Kind: ErrCache, Model: ref, What: path + " is not a regular file", Hint: "remove it"}
		}
	}
	return nil
}

// restart empties the part.
func (p *part) restart() error {
	p.hash.Reset()
	p.have, p.from, p.old = 0, origin{}, false
	if err := p.file.Truncate(0); err != nil {
		return cacheError(p.w.ref, "empty", p.path, err)
	}
	return nil
}

// comes notes where the next bytes are from, for a later run.
func (p *part) comes(from origin) {
	if p.from == from {
		return
	}
	p.from = from
	if p.lock == nil {
		return
	}
	// Without the note a later run asks without If-Range; the digest decides anyway.
	b, err := json.Marshal(from)
	if err == nil {
		_ = fsx.WriteAtomic(p.z.o.FS, p.path+".json", func(w io.Writer) error { _, err := w.Write(b); return err })
	}
}

// write appends to the file and the hash.
func (p *part) write(b []byte) error {
	n, err := p.file.WriteAt(b, p.have)
	p.hash.Write(b[:n])
	p.have += int64(n)
	if err != nil {
		return cacheError(p.w.ref, "write", p.path, err)
	}
	return nil
}

// sum is the digest of what the part holds.
func (p *part) sum() string { return hex.EncodeToString(p.hash.Sum(nil)) }

// publish makes the part the blob: its digest is right.
func (p *part) publish() error {
	fsys, path := p.z.o.FS, p.z.blob(p.w.digest)
	if err := p.file.Sync(); err != nil {
		return cacheError(p.w.ref, "write", p.path, err)
	}
	err := p.file.Close()
	p.file = nil
	if err != nil {
		return cacheError(p.w.ref, "write", p.path, err)
	}
	if err := fsys.Rename(p.path, path); err != nil {
		return cacheError(p.w.ref, "rename to", path, err)
	}
	if err := fsys.SyncDir(p.z.blobs()); err != nil {
		return cacheError(p.w.ref, "write", p.z.blobs(), err)
	}
	fsx.MakeReadOnly(fsys, path) // not before: a part that was killed here must open again
	return nil
}

// close gives the lock back. What was downloaded stays for a later run, unless it
// is dropped or no later run would look for it.
func (p *part) close(drop bool) {
	if p.file != nil {
		p.file.Close()
	}
	fsys := p.z.o.FS
	if drop || p.lock == nil {
		_ = fsys.Remove(p.path)
	}
	if _, err := fsys.Stat(p.path); isMissing(err) {
		_ = fsys.Remove(p.path + ".json")
	}
	p.z.unlock(p.lock)
}

// sweep removes what processes left behind that were killed long ago. What is
// resumable stays.
func (z *Zoo) sweep() {
	mine := "." + host() + partSuffix
	for _, dir := range []string{z.blobs(), z.manifests()} {
		entries, err := z.o.FS.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			name := e.Name()
			temporary := strings.HasPrefix(name, ".") && strings.Contains(name, ".tmp-") ||
				strings.HasSuffix(name, partSuffix) && !strings.HasSuffix(name, mine)
			if part, ok := strings.CutSuffix(name, partSuffix+".json"); ok { // of a part that was killed when it was whole
				_, err := z.o.FS.Stat(filepath.Join(dir, part+partSuffix))
				temporary = isMissing(err)
			}
			if !temporary || e.Type() == fs.ModeDir {
				continue
			}
			if st, err := e.Info(); err == nil && z.o.Clock.Now().Sub(st.ModTime()) > stale {
				_ = z.o.FS.Remove(filepath.Join(dir, name))
			}
		}
	}
}
