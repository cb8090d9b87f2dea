//go:build cgo

package cuda_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
	"github.com/architehc/nanochat/kernels/dl"
)

func TestMachineWithoutDriver(t *testing.T) {
	_, err := cuda.OpenDriver(t.TempDir())
	if err == nil {
		t.Skip("this machine has a driver")
	}
	var e *dl.Error
	require.ErrorAs(t, err, &e)
	require.ErrorContains(t, err, "libcuda.so.1")
	require.NotEmpty(t, e.Hint)
}

func TestDriversThatCannotBeUsed(t *testing.T) {
	for _, c := range []struct {
		name, scene, value, text, hint string
	}{
		{"no device", "FAKE_CUDA_DEVICES", "0", "CUDA_ERROR_100", "CUDA_VISIBLE_DEVICES"},
		{"old", "FAKE_CUDA_VERSION", "11080", "for CUDA 11.8, needed is 12.0", "newer driver"},
		{"stub", "FAKE_CUDA_FAIL", "cuInit:34:1", "CUDA_ERROR_34", "LD_LIBRARY_PATH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := emulated(t, c.scene, c.value)
			var e *cuda.Error
			require.ErrorAs(t, err, &e)
			require.ErrorContains(t, err, c.text)
			require.Contains(t, e.Hint, c.hint)
		})
	}
}

func TestDevices(t *testing.T) {
	d, err := emulated(t, "FAKE_CUDA_DEVICES", "2")
	require.NoError(t, err)
	require.Equal(t, "13.0", d.Version())
	list, err := d.Devices()
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, "Emulated GPU 1", list[1].Name)
	require.Equal(t, "sm_90a", list[1].Arch())
	require.EqualValues(t, 1<<30, list[1].Memory)
	require.Equal(t, "sm_86", cuda.Info{Major: 8, Minor: 6}.Arch())
	_, err = d.Open(2)
	require.ErrorContains(t, err, "CUDA_ERROR_101")
}

func TestDeviceThatIsTooOld(t *testing.T) {
	d, err := emulated(t, "FAKE_CUDA_MAJOR", "7")
	require.NoError(t, err)
	_, err = d.Open(0)
	require.ErrorContains(t, err, "compute capability 7.0, needed is 8.0")
}

func TestOpenThatFailsLeavesNothing(t *testing.T) {
	for _, call := range []string{"cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuStreamCreate"} {
		d, err := emulated(t, "FAKE_CUDA_FAIL", call+":2:1")
		require.NoError(t, err)
		_, err = d.Open(0)
		require.ErrorContains(t, err, call)
		require.Zero(t, left(t))
	}
}

func TestBuffers(t *testing.T) {
	v := device(t)
	require.NoError(t, v.Do(func(t_ *cuda.Thread) error {
		a, err := t_.Alloc(4000)
		require.NoError(t, err)
		b, err := t_.Alloc(4000)
		require.NoError(t, err)
		src := make([]float32, 1000)
		for i := range src {
			src[i] = float32(i)
		}
		require.NoError(t, cuda.Upload(t_, a, src))
		require.NoError(t, t_.Fill(b, 0, 4000))
		require.NoError(t, t_.Copy(b+400, a, 400))
		got := make([]float32, 1000)
		require.NoError(t, cuda.Download(t_, got, b))
		want := make([]float32, 1000)
		copy(want[100:], src[:100])
		require.Equal(t, want, got)
		require.NoError(t, cuda.Upload(t_, a, []float32{}))

		pinned, err := cuda.Pinned[float32](t_, 10)
		require.NoError(t, err)
		require.NoError(t, cuda.Download(t_, pinned, a))
		require.Equal(t, src[:10], pinned)
		return nil
	}))
}

func TestMemoryIsUsedAgainAndCounted(t *testing.T) {
	v := device(t, "FAKE_CUDA_MEMORY", "1000000")
	require.NoError(t, v.Do(func(t_ *cuda.Thread) error {
		a, err := t_.Alloc(1000)
		require.NoError(t, err)
		require.NoError(t, t_.Free(a))
		require.Error(t, t_.Free(a))
		require.Error(t, t_.Free(a+256))
		require.NoError(t, t_.Free(0))
		b, err := t_.Alloc(900)
		require.NoError(t, err)
		require.Equal(t, a, b)
		used, peak, held := t_.Memory()
		require.Equal(t, [3]uint64{1024, 1024, 1024}, [3]uint64{used, peak, held})
		require.NoError(t, t_.Free(b))

		c, err := t_.Alloc(999_936) // fits once the free block is given back
		require.NoError(t, err)
		_, err = t_.Alloc(300)
		var e *cuda.MemoryError
		require.ErrorAs(t, err, &e)
		require.EqualValues(t, 512, e.Asked)
		require.EqualValues(t, 1_000_000, e.Total)
		require.EqualValues(t, 999_936, e.Used)
		used, peak, held = t_.Memory()
		require.Equal(t, [3]uint64{999_936, 999_936, 999_936}, [3]uint64{used, peak, held})
		return t_.Free(c)
	}))
}

func TestDoFromManyGoroutines(t *testing.T) {
	v := device(t)
	var group sync.WaitGroup
	inside := 0
	for range 50 {
		group.Go(func() {
			for range 20 {
				require.NoError(t, v.Do(func(t_ *cuda.Thread) error {
					inside++ // no lock: one at a time
					return t_.Wait()
				}))
			}
		})
	}
	group.Wait()
	require.Equal(t, 1000, inside)
}

func TestPanicInDoIsAnErrorAndTheDeviceGoesOn(t *testing.T) {
	v := device(t)
	require.ErrorContains(t, v.Do(func(*cuda.Thread) error { panic("oh") }), "oh")
	require.NoError(t, v.Do(func(t_ *cuda.Thread) error { return t_.Wait() }))
}

func TestClosedDevice(t *testing.T) {
	v := device(t)
	v.Close()
	v.Close()
	require.ErrorIs(t, v.Do(func(*cuda.Thread) error { return nil }), cuda.ErrClosed)
}

func TestLostContextStaysLost(t *testing.T) {
	v := device(t, "FAKE_CUDA_FAIL", "cuStreamSynchronize:700:2")
	require.NoError(t, v.Do(func(t_ *cuda.Thread) error { return t_.Wait() }))
	first := v.Do(func(t_ *cuda.Thread) error { return t_.Wait() })
	require.ErrorContains(t, first, "CUDA_ERROR_700")
	called := false
	require.Equal(t, first, v.Do(func(*cuda.Thread) error { called = true; return nil }))
	require.False(t, called)
}

func TestCopyOutOfBounds(t *testing.T) {
	v := device(t)
	err := v.Do(func(t_ *cuda.Thread) error {
		a, err := t_.Alloc(256)
		require.NoError(t, err)
		return cuda.Upload(t_, a, make([]byte, 257))
	})
	require.ErrorContains(t, err, "cuMemcpyHtoDAsync")
}

func TestLibDirs(t *testing.T) {
	env := map[string]string{cuda.LibDirVariable: "/a::/b", "VIRTUAL_ENV": "/venv", "CONDA_PREFIX": "/conda", "HOME": "/home/me"}
	dirs := cuda.LibDirs(func(name string) string { return env[name] })
	require.Equal(t, []string{
		"/a", "/b", "/venv/lib/python3*/site-packages/nvidia/*/lib", "/conda/lib", "/conda/lib/python3*/site-packages/nvidia/*/lib",
		"/home/me/.local/lib/python3*/site-packages/nvidia/*/lib",
	}, dirs[:6])
	require.Equal(t, dirs[6:], cuda.LibDirs(func(string) string { return "" }))
	require.Contains(t, dirs[6:], "/usr/local/cuda/lib64")
}

// A driver that cannot load what a newer compiler made gets what is compiled on the machine.
func TestCodeOfANewerCompiler(t *testing.T) {
	none := &dl.Error{Library: "NVRTC"}
	for _, c := range []struct {
		name string
		code string
		err  error
	}{{"compiled again", "", nil}, {"no compiler", "no compiler", none}} {
		v := device(t)
		var asked []string
		err := v.Do(func(th *cuda.Thread) error {
			_, err := th.Train(func(name, arch string) ([]byte, error) {
				if asked = append(asked, arch); !strings.HasSuffix(arch, cuda.Again) {
					return append([]byte(filepath.Join(t.TempDir(), "newer.so")), 0), nil
				}
				if c.err != nil {
					return nil, c.err
				}
				return cudatest.Image(name, arch)
			})
			return err
		})
		v.Close()
		require.Equal(t, []string{"sm_90a", "sm_90a" + cuda.Again}, asked[:2])
		if c.err == nil {
			require.NoError(t, err)
			continue
		}
		var e *cuda.Error
		require.ErrorAs(t, err, &e)
		require.Contains(t, e.Hint, "newer driver")
		require.ErrorIs(t, err, none)
	}
}

// Libraries of CUDA 12 are taken where the driver is for that, wherever they are.
func TestLibrariesForTheDriver(t *testing.T) {
	libs := libraries(t)
	older := t.TempDir()
	for to, from := range map[string]string{"libcublasLt.so.12": "libcublasLt.so.13", "libnvrtc.so.12": "libnvrtc.so.13"} {
		text, err := os.ReadFile(filepath.Join(libs, from))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(older, to), text, 0o755))
	}
	for version, want := range map[string]string{"13000": libs, "12040": older} {
		t.Setenv("FAKE_CUDA_VERSION", version)
		b, err := cuda.OpenBlas(libs, older)
		require.NoError(t, err)
		require.Equal(t, want, filepath.Dir(b.Path()))
		c, err := cuda.OpenCompiler(libs, older)
		require.NoError(t, err)
		require.Equal(t, want, filepath.Dir(c.Path()))
	}
}

func TestSharedMemoryAndGraphsOfKernelsThatAreNotThere(t *testing.T) {
	v := device(t)
	require.NoError(t, v.Do(func(t_ *cuda.Thread) error {
		_, err := t_.Load(nil)
		require.Error(t, err)
		_, err = t_.Load(append([]byte(filepath.Join(t.TempDir(), "none.so")), 0))
		require.ErrorContains(t, err, "cuModuleLoadData")
		code, err := cudatest.Image("ternary", "")
		require.NoError(t, err)
		m, err := t_.Load(code)
		require.NoError(t, err)
		_, err = t_.Kernel(m, "nothing", 0)
		require.ErrorContains(t, err, "cuModuleGetFunction nothing")
		_, err = t_.Kernel(m, "quantize", 1<<20)
		require.ErrorContains(t, err, "cuFuncSetAttribute")
		return nil
	}))
}

func TestFunctionThatEndsItsGoroutineClosesTheDevice(t *testing.T) {
	v := device(t)
	require.ErrorContains(t, v.Do(func(*cuda.Thread) error { runtime.Goexit(); return nil }), "was ended")
	require.ErrorIs(t, v.Do(func(*cuda.Thread) error { return nil }), cuda.ErrClosed)
}
