package tune

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/numa"
)

// format is the version of the file's form.
const format = 1

// file is the stored form: what was measured and on what.
type file struct {
	Format  int      `json:"format"`
	CPU     string   `json:"cpu"`
	Version string   `json:"version"`
	Sets    []string `json:"sets"`
	Choices []Choice `json:"choices"`
}

// store is the file of one machine type and library version.
type store struct {
	dir, path string
	head      file // without choices
}

// DefaultDir is the user's cache directory for choices: nanochat/tune below
// XDG_CACHE_HOME or its equivalent.
func DefaultDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("tune: no cache directory: %w", err)
	}
	return filepath.Join(dir, "nanochat", "tune"), nil
}

func newStore(o Options, m numa.Machine) *store {
	head := file{
		Format: format,
		CPU: fmt.Sprintf("%s, family %s model %s stepping %s, %d CPUs, %s", m.CPU, m.Family, m.Model, m.Stepping,
			m.CPUs, strings.Join(kernels.Features(), " ")),
		Version: o.Version,
	}
	for _, s := range o.Sets {
		head.Sets = append(head.Sets, s.Name)
	}
	id := sha256.Sum256([]byte(head.CPU + "\x00" + head.Version))
	return &store{dir: o.Dir, path: path(o.Dir, fmt.Sprintf("%x", id[:6])), head: head}
}

// read returns the stored choices. A file that is absent has none; one that is
// damaged, or made by something else, is an error.
func (s *store) read() ([]Choice, error) {
	b, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("tune: stored choices not used: %w", err)
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, s.unused("it is damaged: %v", err)
	}
	switch {
	case f.Format != s.head.Format:
		return nil, s.unused("it has format %d, want %d", f.Format, s.head.Format)
	case f.CPU != s.head.CPU:
		return nil, s.unused("it was measured on %q, this is %q", f.CPU, s.head.CPU)
	case f.Version != s.head.Version:
		return nil, s.unused("it was made by version %q, this is %q", f.Version, s.head.Version)
	case !slices.Equal(f.Sets, s.head.Sets):
		return nil, s.unused("it compares the kernels %v, this library has %v", f.Sets, s.head.Sets)
	}
	for i, c := range f.Choices {
		err := c.check()
		if err == nil && (!slices.Contains(f.Sets, c.Kernel) || c.Threads < 1 || c.Grain < 0 || c.Grain%kernels.TileSide != 0 ||
			!(c.Nanoseconds > 0) || math.IsInf(c.Nanoseconds, 0)) {
			err = fmt.Errorf("kernel %q, %d threads, grain %d, %g ns", c.Kernel, c.Threads, c.Grain, c.Nanoseconds)
		}
		if err != nil {
			return nil, s.unused("choice %d is invalid: %v", i, err)
		}
	}
	return f.Choices, nil
}

func (s *store) unused(why string, args ...any) error {
	return fmt.Errorf("tune: %s: stored choices not used, measured again: %s", s.path, fmt.Sprintf(why, args...))
}

// write stores choices and keeps those of other shapes that are already there.
// The file is replaced as a whole, so a reader never sees half of it.
func (s *store) write(choices []Choice) error {
	f := s.head
	f.Choices = slices.Clone(choices)
	old, _ := s.read() // damaged: replaced
	for _, c := range old {
		if find(f.Choices, c.Shape, c.Threads) == nil {
			f.Choices = append(f.Choices, c)
		}
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("tune: choices not stored: %w", err)
	}
	if err := replace(s.dir, s.path, append(b, '\n')); err != nil {
		return fmt.Errorf("tune: choices not stored, they will be measured again: %w", err)
	}
	return nil
}

// replace writes a file under a temporary name in the same directory, makes it
// durable and renames it.
func replace(dir, path string, b []byte) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	t, err := os.CreateTemp(dir, filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = t.Close()
			_ = os.Remove(t.Name())
		}
	}()
	if _, err := t.Write(b); err != nil {
		return err
	}
	if err := t.Sync(); err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	return os.Rename(t.Name(), path)
}
