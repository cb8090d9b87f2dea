package checkpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// SplitOptions says how Split cuts.
type SplitOptions struct {
	// Size is the most bytes of a file that is written, at least MinPart.
	Size int64
	// Models takes best.gguf and model.gguf of the run along.
	Models bool
}

// Split cuts a checkpoint into files of at most o.Size bytes in dir, for ways that take
// small files only; Join puts them together. from is a checkpoint, or the directory of a
// run: then it is the newest good one, with the configuration and the metrics, all that the
// training needs to go on.
//
// Parts that are there already with the right contents are not written again, so that a
// Split that was cut off goes on. PARTS, without which the others are nothing, comes last.
// Errors of what is read are of type *Error. A nil fsys is the real disk.
func Split(fsys fsx.FS, from, dir string, o SplitOptions) (*Parts, error) {
	if fsys == nil {
		fsys = fsx.OS()
	}
	if o.Size < MinPart {
		return nil, fmt.Errorf("checkpoint: parts of %d bytes are too small, want %d or more", o.Size, MinPart)
	}
	if _, err := fsys.Stat(filepath.Join(dir, "checkpoints")); err == nil || filepath.Clean(dir) == filepath.Clean(from) {
		return nil, &Error{Path: dir, What: "is a directory of a run; parts need one of their own"}
	}
	p, paths, err := collect(fsys, from, o)
	if err != nil {
		return nil, err
	}
	p.Size = o.Size
	if err := fsys.MkdirAll(dir, 0o777); err != nil {
		return nil, &Error{Path: dir, What: "the directory cannot be made", Err: err}
	}
	if free, ok := fsx.Free(fsys, dir); ok && p.Bytes() > free {
		return nil, (&saver{need: p.Bytes()}).explain(fsys, filepath.Join(dir, partsName), errNoSpace)
	}
	// What the old list says is no longer so.
	if err := removeTree(fsys, filepath.Join(dir, partsName)); err != nil {
		return nil, err
	}
	c := &cutter{fsys: fsys, dir: dir, p: p}
	for i, name := range paths {
		if err := c.file(&p.Files[i], name); err != nil {
			return nil, err
		}
	}
	if err := c.flush(); err != nil {
		return nil, err
	}
	text := p.text()
	if int64(len(text)) > o.Size || len(text) > maxParts {
		return nil, &Error{Path: dir, What: fmt.Sprintf("%d parts of %d bytes have a list of %d bytes, which is larger than a part may be", len(p.Parts), o.Size, len(text))}
	}
	if err := fsx.WriteAtomic(fsys, filepath.Join(dir, partsName), func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	}); err != nil {
		return nil, &Error{Path: filepath.Join(dir, partsName), What: "not written", Err: err}
	}
	return p, c.sweep()
}

// collect finds the files to split: their names with their sizes, and where they are.
func collect(fsys fsx.FS, from string, o SplitOptions) (p *Parts, paths []string, err error) {
	at, run := from, ""
	if _, err := fsys.Stat(filepath.Join(from, manifestName)); errors.Is(err, fs.ErrNotExist) {
		dir := from
		if _, err := fsys.Stat(filepath.Join(from, "checkpoints")); err == nil {
			dir, run = filepath.Join(from, "checkpoints"), from
		}
		if at, _, err = Latest(fsys, dir); err != nil {
			return nil, nil, err
		}
	} else if err := verify(fsys, at); err != nil {
		return nil, nil, err
	}
	m, err := readManifest(fsys, at)
	if err != nil {
		return nil, nil, err
	}
	name := filepath.Base(at)
	if !nameOf.MatchString(name) {
		name = fmt.Sprintf("step-%08d", m.step)
	}
	p = &Parts{Step: m.step, Checkpoint: "checkpoints/" + name}
	add := func(name, file string, needed bool) error {
		info, err := fsys.Stat(file)
		if errors.Is(err, fs.ErrNotExist) && !needed {
			return nil
		}
		if err != nil {
			return &Error{Path: file, What: "cannot be read", Err: err}
		}
		p.Files, paths = append(p.Files, Part{Name: name, Bytes: info.Size()}), append(paths, file)
		return nil
	}
	for _, f := range append([]string{manifestName, keepName}, fileNames...) {
		if err := add(path.Join(p.Checkpoint, f), filepath.Join(at, f), f != keepName); err != nil {
			return nil, nil, err
		}
	}
	others := []string{"config.toml", "metrics.jsonl"}
	if o.Models {
		others = append(others, "best.gguf", "model.gguf")
	}
	for _, f := range others {
		if run == "" {
			break
		}
		if err := add(f, filepath.Join(run, f), false); err != nil {
			return nil, nil, err
		}
	}
	return p, paths, nil
}

// cutter writes files as parts.
type cutter struct {
	fsys fsx.FS
	dir  string
	p    *Parts
	part []byte // the one at hand
}

// file adds the bytes of one file, as many as it had when it was found: metrics of a run
// that goes on may have grown.
func (c *cutter) file(f *Part, name string) error {
	in, err := c.fsys.Open(name)
	if err != nil {
		return &Error{Path: name, What: "cannot be read", Err: err}
	}
	defer in.Close()
	sum := sha256.New()
	for at := int64(0); at < f.Bytes; {
		if c.part == nil {
			c.part = make([]byte, 0, c.p.Size)
		}
		room := c.part[len(c.part):min(int64(cap(c.part)), int64(len(c.part))+f.Bytes-at)]
		n, err := in.ReadAt(room, at)
		if n < len(room) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return &Error{Path: name, What: fmt.Sprintf("cannot be read at byte %d", at+int64(n)), Err: err}
		}
		sum.Write(room)
		c.part, at = c.part[:len(c.part)+n], at+int64(n)
		if len(c.part) == cap(c.part) {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
	f.SHA256 = fmt.Sprintf("%x", sum.Sum(nil))
	return nil
}

// flush writes the part at hand, unless it is there.
func (c *cutter) flush() error {
	if len(c.part) == 0 {
		return nil
	}
	x := Part{nameOfPart(len(c.p.Parts)), int64(len(c.part)), fmt.Sprintf("%x", sha256.Sum256(c.part))}
	c.p.Parts = append(c.p.Parts, x)
	name := filepath.Join(c.dir, x.Name)
	if x.compare(c.fsys, name, nil) != nil {
		if err := fsx.WriteAtomic(c.fsys, name, func(w io.Writer) error {
			_, err := w.Write(c.part)
			return err
		}); err != nil {
			return &Error{Path: name, What: "not written", Err: err}
		}
	}
	c.part = c.part[:0]
	return nil
}

// sweep removes parts of an earlier split that had more.
func (c *cutter) sweep() error {
	list, err := c.fsys.ReadDir(c.dir)
	if err != nil {
		return &Error{Path: c.dir, What: "the directory cannot be read", Err: err}
	}
	for _, e := range list {
		if partName.MatchString(e.Name()) && !slices.ContainsFunc(c.p.Parts, func(x Part) bool { return x.Name == e.Name() }) {
			if err := removeTree(c.fsys, filepath.Join(c.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare reads the part, passes it on to w if that is not nil, and says how it differs.
func (x *Part) compare(fsys fsx.FS, name string, w io.Writer) error {
	f, err := fsys.Open(name)
	if err != nil {
		return &Error{Path: name, What: "is missing", Err: err}
	}
	defer f.Close()
	sum, err := hex.DecodeString(x.SHA256)
	if err != nil || len(sum) != sha256.Size {
		return &Error{Path: name, What: fmt.Sprintf("%q is no SHA-256", x.SHA256)}
	}
	return fileInfo{x.Bytes, [sha256.Size]byte(sum)}.compare(name, f, w)
}

// same compares what was hashed.
func (x *Part) same(name string, h hash.Hash) error {
	if sum := fmt.Sprintf("%x", h.Sum(nil)); sum != x.SHA256 {
		return &Error{Path: name, What: fmt.Sprintf("its SHA-256 is %s, expected %s: it was changed after it was written", sum, x.SHA256)}
	}
	return nil
}
