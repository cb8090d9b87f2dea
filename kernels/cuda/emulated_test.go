//go:build cgo

package cuda

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/dl"
)

// built is the directory with the emulated driver and the kernels compiled for it.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cuda")
	if err != nil {
		return "", err
	}
	if err := compileC(filepath.Join(dir, "libcuda.so.1"), "gcc", "-std=c11", "-O1", "testdata/libcuda.c", "-ldl", "-lpthread"); err != nil {
		return dir, err
	}
	for _, name := range Sources() {
		if err := compileKernel(filepath.Join(dir, name+".so"), "src/"+name+".cu"); err != nil {
			return dir, err
		}
	}
	return dir, nil
})

func compileC(out, cc string, args ...string) error {
	cmd := exec.Command(cc, append([]string{"-shared", "-fPIC", "-fvisibility=default", "-o", out}, args...)...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return &exec.Error{Name: cmd.String(), Err: &dl.Error{Library: string(text)}}
	}
	return nil
}

func compileKernel(out, source string) error {
	return compileC(out, "g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-ffp-contract=off", "-Isrc", "-x", "c++", source)
}

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := built(); err == nil || dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// libraries builds what the tests load.
func libraries(t *testing.T) string {
	t.Helper()
	for _, cc := range []string{"gcc", "g++"} {
		if _, err := exec.LookPath(cc); err != nil {
			t.Skip("no", cc, "to build the emulated driver with")
		}
	}
	dir, err := built()
	require.NoError(t, err)
	return dir
}

// emulated opens the emulated driver; scene is pairs of environment variables and values.
func emulated(t *testing.T, scene ...string) (*Driver, error) {
	t.Helper()
	dir := libraries(t)
	for _, name := range []string{"FAKE_CUDA_DEVICES", "FAKE_CUDA_VERSION", "FAKE_CUDA_MEMORY", "FAKE_CUDA_FAIL", "FAKE_CUDA_MAJOR"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	for i := 0; i < len(scene); i += 2 {
		t.Setenv(scene[i], scene[i+1])
	}
	return OpenDriver(dir)
}

// device opens the emulated device and checks at the end that nothing is left of it.
func device(t *testing.T, scene ...string) *Device {
	t.Helper()
	d, err := emulated(t, scene...)
	require.NoError(t, err)
	v, err := d.Open(0)
	require.NoError(t, err)
	t.Cleanup(func() {
		v.Close()
		require.Zero(t, left(t), "areas and contexts are left")
	})
	return v
}

// left is what was not given back to the emulated driver.
func left(t *testing.T) int32 {
	t.Helper()
	lib, err := dl.Open(dl.Search{Files: []string{filepath.Join(libraries(t), "libcuda.so.1")}})
	require.NoError(t, err)
	var f struct {
		Left func() int32 `c:"fake_cuda_left"`
	}
	require.NoError(t, lib.Bind(&f))
	return f.Left()
}

// image gives the host build of a kernel source in the place of its code.
func image(t *testing.T) Image {
	dir := libraries(t)
	return func(name, _ string) ([]byte, error) {
		return append([]byte(filepath.Join(dir, name+".so")), 0), nil
	}
}
