//go:build cgo

package cuda_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
	"github.com/architehc/nanochat/kernels/dl"
)

func TestMain(m *testing.M) {
	code := m.Run()
	cudatest.Clean()
	os.Exit(code)
}

// libraries builds what the tests load.
func libraries(t *testing.T) string {
	t.Helper()
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("this test is about the emulated GPU; the tests are on the machine's")
	}
	dirs, _, missing, err := cudatest.Setup(os.Getenv)
	if missing != "" {
		t.Skip(missing)
	}
	require.NoError(t, err)
	return dirs[0]
}

// emulated opens the emulated driver; scene is pairs of environment variables and values.
func emulated(t *testing.T, scene ...string) (*cuda.Driver, error) {
	t.Helper()
	dir := libraries(t)
	for _, name := range []string{"FAKE_CUDA_DEVICES", "FAKE_CUDA_VERSION", "FAKE_CUDA_MEMORY", "FAKE_CUDA_FAIL", "FAKE_CUDA_MAJOR"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	for i := 0; i < len(scene); i += 2 {
		t.Setenv(scene[i], scene[i+1])
	}
	return cuda.OpenDriver(dir)
}

// device opens the emulated device and checks at the end that nothing is left of it.
func device(t *testing.T, scene ...string) *cuda.Device {
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
