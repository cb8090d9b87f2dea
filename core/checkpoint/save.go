package checkpoint

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"syscall"

	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/core/safetensors"
)

// Options says which checkpoints stay.
type Options struct {
	// KeepLast is how many of the newest stay, the one saved included. 0: all stay.
	KeepLast int
	// KeepBest is how many of those with the lowest scores stay besides.
	KeepBest int
	// Score is that of this checkpoint, such as held-out bits per byte; lower is
	// better. 0 or NaN: it has none.
	Score float64
}

// Save writes a checkpoint into dir, which it makes if needed, and then removes
// what o does not keep. Only one process at a time may save into dir.
//
// If path is not empty the checkpoint is safe at path; an error then is about
// LATEST or the removal of old ones. If path is empty the save failed, and all
// earlier checkpoints are as they were. A nil fsys is the real disk.
func Save(fsys fsx.FS, dir string, step int, s *State, o Options) (path string, err error) {
	if fsys == nil {
		fsys = fsx.OS()
	}
	w, err := newSaver(step, s)
	if err != nil {
		return "", err
	}
	if err := makeDir(fsys, dir); err != nil {
		return "", &Error{Path: dir, What: "the directory cannot be made", Err: err}
	}
	d, err := scan(fsys, dir)
	if err != nil {
		return "", err
	}
	var later []error // what does not keep this save from succeeding
	for _, name := range d.leftovers {
		later = append(later, removeTree(fsys, filepath.Join(dir, name)))
	}
	w.fsys, w.sequence, w.score = fsys, d.sequence()+1, o.Score
	if o.Score == 0 || math.IsInf(o.Score, 0) {
		w.score = math.NaN()
	}
	name := d.freeName(step)
	path = filepath.Join(dir, name)
	if free, ok := fsx.Free(fsys, dir); ok && w.room() > free {
		return "", w.explain(fsys, path, syscall.ENOSPC)
	}
	tmp := path + tmpSuffix
	if err := w.write(tmp); err != nil {
		_ = removeTree(fsys, tmp) // the next save tries again
		return "", w.explain(fsys, path, err)
	}
	if err := fsys.Rename(tmp, path); err != nil {
		_ = removeTree(fsys, tmp)
		return "", w.explain(fsys, path, err)
	}
	if err := fsys.SyncDir(dir); err != nil {
		return "", w.explain(fsys, path, err)
	}
	later = append(later, writeLatest(fsys, dir, name))
	bad, err := d.rotate(entry{name: name, m: &w.manifest}, o)
	if bad {
		return "", err
	}
	return path, errors.Join(append(later, err)...)
}

// makeDir makes dir and makes its name survive.
func makeDir(fsys fsx.FS, dir string) error {
	if info, err := fsys.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if err := fsys.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(filepath.Clean(dir)))
}

func writeLatest(fsys fsx.FS, dir, name string) error {
	err := fsx.WriteAtomic(fsys, filepath.Join(dir, latestName), func(w io.Writer) error {
		_, err := io.WriteString(w, name+"\n")
		return err
	})
	if err != nil {
		return &Error{Path: filepath.Join(dir, latestName), What: "cannot be written", Err: err}
	}
	return nil
}

// saver writes one checkpoint.
type saver struct {
	fsys fsx.FS
	manifest
	contents [3]func(io.Writer) error
	need     int64 // bytes, MANIFEST and directories not counted
}

// room is the bytes that must be free for a save: a fifth more than it writes, because
// others write too.
func (w *saver) room() int64 { return w.need + w.need/5 }

// Room is the bytes that Save wants free on the disk for s.
func Room(s *State) (int64, error) {
	w, err := newSaver(0, s)
	if err != nil {
		return 0, err
	}
	return w.room(), nil
}

// newSaver checks all that can be checked before anything is written.
func newSaver(step int, s *State) (*saver, error) {
	if step < 0 {
		return nil, fmt.Errorf("checkpoint: step is %d, expected 0 or more", step)
	}
	w := &saver{manifest: manifest{step: step}}
	meta := []byte(s.Meta)
	if len(meta) == 0 {
		meta = []byte("{}")
	}
	if !json.Valid(meta) {
		return nil, errors.New("checkpoint: State.Meta is not JSON")
	}
	if len(meta) > maxState {
		return nil, fmt.Errorf("checkpoint: State.Meta has %d bytes, at most %d are allowed", len(meta), maxState)
	}
	for i, list := range [][]optim.Tensor{s.Weights, s.Optimizer} {
		sources := make([]safetensors.Source, len(list))
		for k, t := range list {
			if t.Rows < 0 || t.Cols < 0 || t.Rows*t.Cols != len(t.Data) {
				return nil, fmt.Errorf("checkpoint: tensor %q has %d values, expected [%d %d]", t.Name, len(t.Data), t.Rows, t.Cols)
			}
			sources[k] = safetensors.FromFloat32s(t.Name, []int{t.Rows, t.Cols}, t.Data)
		}
		format := map[string]string{"format": "pt"} // what Python programs ask for
		size, err := safetensors.Size(format, sources)
		if err != nil {
			return nil, fmt.Errorf("checkpoint: %s: %w", fileNames[i], err)
		}
		w.need += size
		w.contents[i] = func(out io.Writer) error { return safetensors.Write(out, format, sources) }
	}
	w.need += int64(len(meta))
	w.contents[2] = func(out io.Writer) error {
		_, err := out.Write(meta)
		return err
	}
	return w, nil
}

// write writes all files to dir, which must not exist, and makes them survive.
func (w *saver) write(dir string) error {
	if err := w.fsys.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for i := range w.contents {
		f := &hashFile{hash: sha256.New()}
		err := writeFile(w.fsys, filepath.Join(dir, fileNames[i]), func(out io.Writer) error {
			f.w = out
			return w.contents[i](f)
		})
		if err != nil {
			return err
		}
		w.files[i].size = f.size
		f.hash.Sum(w.files[i].sum[:0])
	}
	err := writeFile(w.fsys, filepath.Join(dir, manifestName), func(out io.Writer) error {
		_, err := out.Write(w.text())
		return err
	})
	if err != nil {
		return err
	}
	return w.fsys.SyncDir(dir)
}

// writeFile makes a file that survives where its directory does.
func writeFile(fsys fsx.FS, path string, write func(io.Writer) error) error {
	f, err := fsx.Create(fsys, path)
	if err != nil {
		return err
	}
	return fsx.Finish(f, write(f))
}

// hashFile hashes what is written.
type hashFile struct {
	w    io.Writer
	hash hash.Hash
	size int64
}

func (f *hashFile) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	f.hash.Write(b[:n])
	f.size += int64(n)
	return n, err
}

// explain makes the error of a save that failed.
func (w *saver) explain(fsys fsx.FS, path string, err error) error {
	what := "not saved"
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		what = fmt.Sprintf("not saved, it needs %d bytes", w.room())
		if free, ok := fsx.Free(fsys, filepath.Dir(path)); ok {
			what += fmt.Sprintf(" and %d are free", free)
		}
		what += "; earlier checkpoints are as they were"
	}
	return &Error{Path: path, What: what, Err: err}
}

// removeTree removes a directory of files, or a file. One that does not exist is
// no error.
func removeTree(fsys fsx.FS, path string) error {
	list, err := fsys.ReadDir(path)
	if err == nil {
		for _, e := range list {
			if err := fsys.Remove(filepath.Join(path, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return &Error{Path: path, What: "cannot be removed", Err: err}
			}
		}
	}
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &Error{Path: path, What: "cannot be removed", Err: err}
	}
	return nil
}
