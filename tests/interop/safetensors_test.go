package interop

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/safetensors"
)

// python runs a script of this directory.
func python(t *testing.T, args ...string) {
	py := os.Getenv("NANOCHAT_PYTHON")
	if py == "" {
		t.Skip("NANOCHAT_PYTHON is not set: want a Python with the packages of requirements-dev.txt; `make test` sets it")
	}
	out, err := exec.Command(py, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// numpyTypes is what NumPy calls our types; it has no others of ours.
var numpyTypes = map[safetensors.DType]string{
	safetensors.F32: "float32", safetensors.F16: "float16", safetensors.F64: "float64", safetensors.Bool: "bool",
	safetensors.U8: "uint8", safetensors.I8: "int8", safetensors.U16: "uint16", safetensors.I16: "int16",
	safetensors.U32: "uint32", safetensors.I32: "int32", safetensors.U64: "uint64", safetensors.I64: "int64",
}

type pythonTensor struct {
	Type  string
	Shape []int
	Hex   string
}

// sameAsPython compares a file as both readers see it.
func sameAsPython(t *testing.T, path string, tensors int) {
	out := filepath.Join(t.TempDir(), "out.json")
	python(t, "safetensors_reference.py", "read", path, out)
	b, err := os.ReadFile(out)
	require.NoError(t, err)
	var want struct {
		Metadata map[string]string
		Tensors  map[string]pythonTensor
	}
	require.NoError(t, json.Unmarshal(b, &want))
	f, err := safetensors.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, want.Metadata, f.Metadata)
	got := map[string]pythonTensor{}
	for _, x := range f.Tensors {
		got[x.Name] = pythonTensor{numpyTypes[x.DType], x.Shape, hex.EncodeToString(x.Data)}
	}
	require.Equal(t, want.Tensors, got)
	require.Len(t, got, tensors)
}

// TestSafetensorsOfPython reads a file of the Python package.
func TestSafetensorsOfPython(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.safetensors")
	python(t, "safetensors_reference.py", "write", path)
	sameAsPython(t, path, 15)
}

// TestSafetensorsForPython has the Python package read a file of ours.
func TestSafetensorsForPython(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.safetensors")
	var list []safetensors.Source
	for d, name := range numpyTypes {
		data := []byte(strings.Repeat("\x01\x00", 3*d.Size()))
		list = append(list, safetensors.FromBytes("t."+name, d, []int{2, 3}, data))
	}
	list = append(list, safetensors.FromFloat32s("number", nil, []float32{2.5}),
		safetensors.FromFloat32s("empty", []int{0, 3}, nil),
		safetensors.FromFloat32s("names \"need\" escapes\n\u00fc", []int{1, 1, 2}, []float32{1, -1}))
	require.NoError(t, safetensors.WriteFile(nil, path, map[string]string{"format": "pt"}, list))
	sameAsPython(t, path, len(list))
}
