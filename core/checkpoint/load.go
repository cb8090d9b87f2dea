package checkpoint

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/core/safetensors"
)

// maxState is the most bytes of state.json.
const maxState = 1 << 28

// Load reads the checkpoint at path and compares all of it with its MANIFEST.
// Errors are of type *Error. A nil fsys is the real disk.
func Load(fsys fsx.FS, path string) (*State, error) {
	if fsys == nil {
		fsys = fsx.OS()
	}
	m, err := readManifest(fsys, path)
	if err != nil {
		return nil, err
	}
	s := &State{Step: m.step}
	for i, list := range []*[]optim.Tensor{&s.Weights, &s.Optimizer} {
		if *list, err = m.loadTensors(fsys, path, i); err != nil {
			return nil, err
		}
	}
	f, size, err := m.open(fsys, path, 2)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	name := filepath.Join(path, stateName)
	if size > maxState {
		return nil, &Error{Path: name, What: fmt.Sprintf("has %d bytes, at most %d are read", size, maxState)}
	}
	s.Meta = make([]byte, size)
	if n, err := f.ReadAt(s.Meta, 0); n < len(s.Meta) {
		return nil, &Error{Path: name, What: fmt.Sprintf("cannot be read at byte %d", n), Err: err}
	}
	return s, nil
}

// loadTensors reads the tensors of file i.
func (m *manifest) loadTensors(fsys fsx.FS, path string, i int) ([]optim.Tensor, error) {
	f, size, err := m.open(fsys, path, i)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	name := filepath.Join(path, fileNames[i])
	file, err := safetensors.New(name, f, size)
	if err != nil {
		return nil, asError(name, err)
	}
	list := make([]optim.Tensor, len(file.Tensors))
	for k := range file.Tensors {
		t := &file.Tensors[k]
		if len(t.Shape) != 2 || t.DType != safetensors.F32 {
			return nil, &Error{Path: name, What: fmt.Sprintf("tensor %q is %s %v, expected F32 with two dimensions", t.Name, t.DType, t.Shape)}
		}
		list[k] = optim.Tensor{Name: t.Name, Rows: t.Shape[0], Cols: t.Shape[1], Data: make([]float32, t.Elements())}
		if err := t.Float32s(list[k].Data); err != nil {
			return nil, asError(name, err)
		}
	}
	return list, nil
}

// asError makes an *Error of one that names the file already.
func asError(name string, err error) error {
	var fe *safetensors.FormatError
	if errors.As(err, &fe) {
		return &Error{Path: name, What: fmt.Sprintf("byte %d: %s", fe.Offset, fe.What)}
	}
	return &Error{Path: name, What: "cannot be read", Err: err}
}
