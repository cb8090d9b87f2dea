package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/architehc/nanochat/core/internal/fsx"
)

const errNoSpace = syscall.ENOSPC

// MissingError is parts that are not there or are not what they were.
type MissingError struct {
	// Dir is where they were looked for.
	Dir string
	// Missing and Damaged are their names; Whole is how many are good.
	Missing, Damaged []string
	Whole            int
}

// Error lists them.
func (e *MissingError) Error() string {
	var s []string
	if len(e.Missing) > 0 {
		s = append(s, fmt.Sprintf("%d missing: %s", len(e.Missing), enumerate(e.Missing)))
	}
	if len(e.Damaged) > 0 {
		s = append(s, fmt.Sprintf("%d damaged: %s", len(e.Damaged), enumerate(e.Damaged)))
	}
	return fmt.Sprintf("checkpoint: %s: of %d parts %s", e.Dir, len(e.Missing)+len(e.Damaged)+e.Whole, strings.Join(s, "; "))
}

// enumerate is names for people.
func enumerate(names []string) string {
	const most = 12
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// Join puts the parts in dir together: their checkpoint, and what else they hold, is then in
// the directory of the run, which may be new, or one that has older checkpoints of it. The
// path is that of the checkpoint; it appears there whole, after everything was verified, or
// not at all. One that is there already is left as it is.
//
// Parts that are not there or were changed are a *MissingError. A nil fsys is the real disk.
func Join(fsys fsx.FS, dir, run string) (p *Parts, at string, err error) {
	if fsys == nil {
		fsys = fsx.OS()
	}
	if p, err = ReadParts(fsys, dir); err != nil {
		return nil, "", err
	}
	if err := p.verify(fsys, dir); err != nil {
		return nil, "", err
	}
	checkpoints, name := filepath.Join(run, "checkpoints"), path.Base(p.Checkpoint)
	at = filepath.Join(checkpoints, name)
	if err := makeDir(fsys, run); err != nil {
		return nil, "", &Error{Path: run, What: "the directory cannot be made", Err: err}
	}
	lock, err := fsys.OpenFile(filepath.Join(run, ".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, "", &Error{Path: run, What: "cannot be written to", Err: err}
	}
	defer lock.Close()
	if ok, err := fsx.TryLock(lock); !ok && err == nil {
		return nil, "", &Error{Path: run, What: "a training is writing to it"}
	}
	if err := makeDir(fsys, checkpoints); err != nil {
		return nil, "", &Error{Path: checkpoints, What: "the directory cannot be made", Err: err}
	}
	j := &joiner{fsys: fsys, p: p, dir: dir, run: run, tmp: at + tmpSuffix}
	there, err := j.compare(checkpoints, name)
	if err != nil || there {
		return p, at, err
	}
	if free, ok := fsx.Free(fsys, run); ok && p.Bytes() > free {
		return nil, "", (&saver{need: p.Bytes()}).explain(fsys, at, errNoSpace)
	}
	if err := j.write(at); err != nil {
		_ = removeTree(fsys, j.tmp) // the next one tries again
		return nil, "", err
	}
	return p, at, writeLatest(fsys, checkpoints, name)
}

// verify compares all parts with their list.
func (p *Parts) verify(fsys fsx.FS, dir string) error {
	e := &MissingError{Dir: dir}
	for i := range p.Parts {
		x := &p.Parts[i]
		name := filepath.Join(dir, x.Name)
		switch err := x.compare(fsys, name, nil); {
		case err == nil:
			e.Whole++
		case errors.Is(err, os.ErrNotExist):
			e.Missing = append(e.Missing, x.Name)
		default:
			e.Damaged = append(e.Damaged, x.Name)
		}
	}
	if len(e.Missing)+len(e.Damaged) > 0 {
		return e
	}
	return nil
}

// joiner writes the files of parts.
type joiner struct {
	fsys     fsx.FS
	p        *Parts
	dir, run string
	tmp      string // the checkpoint before it has its name

}

// compare says whether the checkpoint is in the run already; one that is newer, or another
// one of the same name, is an error.
func (j *joiner) compare(checkpoints, name string) (there bool, err error) {
	d, err := scan(j.fsys, checkpoints)
	if err != nil {
		return false, err
	}
	m, err := j.manifest()
	if err != nil {
		return false, err
	}
	for _, e := range d.entries {
		place := filepath.Join(checkpoints, e.name)
		switch {
		case e.name == name && e.m != nil && bytes.Equal(e.m.text(), m.text()) && verify(j.fsys, place) == nil:
			there = true
		case e.name == name:
			return false, &Error{Path: place, What: "is another checkpoint than the one to be joined, or is damaged; join into another directory, or remove it"}
		case e.m != nil && e.m.sequence >= m.sequence:
			return false, &Error{Path: place, What: "is newer than the checkpoint to be joined; join into another directory"}
		}
	}
	return there, nil
}

// manifest is that of the checkpoint in the parts.
func (j *joiner) manifest() (*manifest, error) {
	r := j.read()
	for _, f := range j.p.Files {
		if f.Name != path.Join(j.p.Checkpoint, manifestName) {
			if _, err := io.CopyN(io.Discard, r, f.Bytes); err != nil {
				return nil, err
			}
			continue
		}
		if f.Bytes > maxManifest {
			return nil, &Error{Path: f.Name, What: fmt.Sprintf("has %d bytes, at most %d are read", f.Bytes, maxManifest)}
		}
		b := make([]byte, f.Bytes)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		m, what := parseManifest(b)
		if m == nil {
			return nil, &Error{Path: f.Name, What: what}
		}
		return m, nil
	}
	return nil, &Error{Path: j.dir, What: "no MANIFEST among the files"}
}

// write writes everything, the name of the checkpoint last.
func (j *joiner) write(at string) error {
	if err := removeTree(j.fsys, j.tmp); err != nil {
		return err
	}
	if err := j.fsys.MkdirAll(j.tmp, 0o777); err != nil {
		return &Error{Path: j.tmp, What: "the directory cannot be made", Err: err}
	}
	r := j.read()
	for i := range j.p.Files {
		f := &j.p.Files[i]
		name, write := filepath.Join(j.run, f.Name), fsx.WriteAtomic
		if rest, ok := strings.CutPrefix(f.Name, j.p.Checkpoint+"/"); ok {
			name, write = filepath.Join(j.tmp, rest), writeFile
		}
		err := write(j.fsys, name, func(w io.Writer) error {
			h := sha256.New()
			if _, err := io.CopyN(io.MultiWriter(w, h), r, f.Bytes); err != nil {
				return err
			}
			return f.same(name, h)
		})
		if err != nil {
			return j.failed(name, err)
		}
	}
	if err := j.fsys.SyncDir(j.tmp); err != nil {
		return j.failed(at, err)
	}
	if err := verify(j.fsys, j.tmp); err != nil {
		return err
	}
	if err := j.fsys.Rename(j.tmp, at); err != nil {
		return j.failed(at, err)
	}
	if err := j.fsys.SyncDir(filepath.Dir(at)); err != nil {
		return j.failed(at, err)
	}
	return nil
}

func (j *joiner) failed(name string, err error) error {
	if _, ok := err.(*Error); ok {
		return err
	}
	return &Error{Path: name, What: "not written", Err: err}
}

// read begins to read the parts as one.
func (j *joiner) read() io.Reader { return &partReader{fsys: j.fsys, dir: j.dir, parts: j.p.Parts} }

// partReader reads parts one after the other.
type partReader struct {
	fsys  fsx.FS
	dir   string
	parts []Part
	at    int64 // in the first of parts
}

func (r *partReader) Read(b []byte) (int, error) {
	for len(r.parts) > 0 && r.at == r.parts[0].Bytes {
		r.parts, r.at = r.parts[1:], 0
	}
	if len(r.parts) == 0 {
		return 0, io.EOF
	}
	name := filepath.Join(r.dir, r.parts[0].Name)
	f, err := r.fsys.Open(name)
	if err != nil {
		return 0, &Error{Path: name, What: "is missing", Err: err}
	}
	defer f.Close()
	n, err := f.ReadAt(b[:min(int64(len(b)), r.parts[0].Bytes-r.at)], r.at)
	r.at += int64(n)
	if n > 0 {
		return n, nil
	}
	return 0, &Error{Path: name, What: fmt.Sprintf("cannot be read at byte %d", r.at), Err: err}
}
