package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/architehc/nanochat/core/internal/fsx"
)

const tmpSuffix = ".tmp"

var (
	nameOf   = regexp.MustCompile(`^step-\d{8,}(\.\d+)?$`)
	leftover = regexp.MustCompile(`^step-\d{8,}(\.\d+)?\.tmp$|^\.LATEST\.tmp-`)
)

// entry is one checkpoint of a directory.
type entry struct {
	name string
	m    *manifest // nil if it cannot be read; err says why
	err  error
	kept bool // has a file KEEP
}

// directory is what there is in a directory of checkpoints.
type directory struct {
	fsys      fsx.FS
	path      string
	entries   []entry // newest first; those without a manifest at the end
	leftovers []string
	names     map[string]bool
}

// scan reads the manifests in dir. A dir that does not exist is empty.
func scan(fsys fsx.FS, dir string) (*directory, error) {
	d := &directory{fsys: fsys, path: dir, names: map[string]bool{}}
	list, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, &Error{Path: dir, What: "the directory cannot be read", Err: err}
	}
	for _, e := range list {
		name := e.Name()
		d.names[name] = true
		switch {
		case leftover.MatchString(name):
			d.leftovers = append(d.leftovers, name)
		case nameOf.MatchString(name):
			x := entry{name: name}
			path := filepath.Join(dir, name)
			x.m, x.err = readManifest(fsys, path)
			_, err := fsys.Stat(filepath.Join(path, keepName))
			x.kept = !errors.Is(err, fs.ErrNotExist) // in doubt it stays
			d.entries = append(d.entries, x)
		}
	}
	slices.SortFunc(d.entries, func(a, b entry) int {
		switch {
		case a.m == nil || b.m == nil:
			if (a.m == nil) != (b.m == nil) {
				return b2i(a.m == nil) - b2i(b.m == nil)
			}
		case a.m.sequence != b.m.sequence:
			return b.m.sequence - a.m.sequence
		}
		return strings.Compare(b.name, a.name)
	})
	return d, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sequence is the number of the newest save; 0 if there is none.
func (d *directory) sequence() int {
	if len(d.entries) == 0 || d.entries[0].m == nil {
		return 0
	}
	return d.entries[0].m.sequence
}

// freeName is a name for a checkpoint of a step.
func (d *directory) freeName(step int) string {
	base := fmt.Sprintf("step-%08d", step)
	name := base
	for n := 1; d.names[name]; n++ {
		name = fmt.Sprintf("%s.%d", base, n)
	}
	return name
}

// rotate removes what o does not keep; added is the checkpoint just saved. bad
// says that it cannot be read back.
func (d *directory) rotate(added entry, o Options) (bad bool, err error) {
	if o.KeepLast <= 0 {
		return false, nil
	}
	// What is damaged does not count, and is left for a person to look at.
	var good []entry
	for _, e := range d.entries {
		if e.m != nil && e.m.checkSizes(d.fsys, filepath.Join(d.path, e.name)) == nil {
			good = append(good, e)
		}
	}
	good = slices.Insert(good, 0, added)
	keep := map[string]bool{}
	for _, e := range good[:min(o.KeepLast, len(good))] {
		keep[e.name] = true
	}
	best := slices.DeleteFunc(slices.Clone(good), func(e entry) bool { return e.m.score != e.m.score })
	slices.SortStableFunc(best, func(a, b entry) int {
		switch {
		case a.m.score < b.m.score:
			return -1
		case a.m.score > b.m.score:
			return 1
		}
		return 0
	})
	for _, e := range best[:min(max(o.KeepBest, 0), len(best))] {
		keep[e.name] = true
	}
	old := slices.DeleteFunc(good, func(e entry) bool { return e.kept || keep[e.name] })
	if len(old) == 0 {
		return false, nil
	}
	if err := verify(d.fsys, filepath.Join(d.path, added.name)); err != nil {
		return true, fmt.Errorf("%w; it was written just now, and older ones were not removed", err)
	}
	for _, e := range old {
		path := filepath.Join(d.path, e.name)
		if err := d.fsys.Rename(path, path+tmpSuffix); err != nil {
			return false, &Error{Path: path, What: "cannot be removed", Err: err}
		}
	}
	if err := d.fsys.SyncDir(d.path); err != nil { // the names go before the contents
		return false, &Error{Path: d.path, What: "old checkpoints cannot be removed", Err: err}
	}
	for _, e := range old {
		if err := removeTree(d.fsys, filepath.Join(d.path, e.name+tmpSuffix)); err != nil {
			return false, err
		}
	}
	return false, nil
}

// Info describes a checkpoint whose MANIFEST is readable.
type Info struct {
	Path string
	Step int
	// Sequence counts the saves of the directory.
	Sequence int
	// Score is the one it was saved with, NaN if none.
	Score float64
	// Bytes is the size of its files.
	Bytes int64
	// Kept says that rotation passes it by.
	Kept bool
}

// List is the checkpoints of dir with readable manifests, newest first. Their
// contents are not looked at. A dir that does not exist has none.
func List(fsys fsx.FS, dir string) ([]Info, error) {
	if fsys == nil {
		fsys = fsx.OS()
	}
	d, err := scan(fsys, dir)
	if err != nil {
		return nil, err
	}
	var list []Info
	for _, e := range d.entries {
		if e.m != nil {
			list = append(list, Info{filepath.Join(dir, e.name), e.m.step, e.m.sequence, e.m.score, e.m.bytes(), e.kept})
		}
	}
	return list, nil
}

// Keep has rotation pass by the checkpoint at path.
func Keep(fsys fsx.FS, path string) error {
	if fsys == nil {
		fsys = fsx.OS()
	}
	if _, err := readManifest(fsys, path); err != nil {
		return err
	}
	f, err := fsx.Create(fsys, filepath.Join(path, keepName))
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = fsys.SyncDir(path)
	}
	if err != nil {
		return &Error{Path: path, What: "cannot be marked to be kept", Err: err}
	}
	return nil
}

// ErrNone says that a directory has no checkpoint.
var ErrNone = errors.New("checkpoint: there is none")

// Latest returns the newest checkpoint of dir that verifies. skipped has an error
// for each that is damaged and was, or may have been, saved later. If there are
// checkpoints and none is good, that is an error of its own; if there are none it is
// ErrNone.
func Latest(fsys fsx.FS, dir string) (path string, skipped []error, err error) {
	if fsys == nil {
		fsys = fsx.OS()
	}
	d, err := scan(fsys, dir)
	if err != nil {
		return "", nil, err
	}
	if len(d.entries) == 0 {
		return "", nil, fmt.Errorf("%w in %s", ErrNone, dir)
	}
	for _, e := range d.entries {
		if e.m == nil { // when it was saved is not known
			skipped = append(skipped, e.err)
		}
	}
	for _, e := range d.entries {
		if e.m == nil {
			continue
		}
		path := filepath.Join(dir, e.name)
		if err := verify(fsys, path); err != nil {
			skipped = append(skipped, err)
			continue
		}
		return path, skipped, nil
	}
	return "", skipped, &Error{Path: dir, What: fmt.Sprintf("none of %d checkpoints is good; delete them to start anew", len(d.entries)), Err: skipped[0]}
}
