//go:build cgo

package cudatest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/cuda"
)

func emulation(t *testing.T) string {
	t.Helper()
	if OnGPU(os.Getenv) {
		t.Skip("this test is about the emulated GPU; the tests are on the machine's")
	}
	dirs, _, missing, err := Setup(os.Getenv)
	if missing != "" {
		t.Skip(missing)
	}
	require.NoError(t, err)
	dir := dirs[0]
	t.Cleanup(Clean)
	return dir
}

// The emulation has to find what it is for: a barrier that is missing, threads that wait
// at different barriers, and an argument with another layout.
func TestEmulationFindsFaults(t *testing.T) {
	dir := emulation(t)
	source := filepath.Join(t.TempDir(), "faulty.cu")
	require.NoError(t, os.WriteFile(source, []byte(`
#include "common.cuh"
struct Args { int *dst; };
NC_KERNEL(unsynchronised, Args) {
	NC_SHARED int v[64];
	v[threadIdx.x] = (int)threadIdx.x;
	a.dst[threadIdx.x] = v[63 - threadIdx.x];
}
NC_KERNEL(divergent, Args) {
	if (threadIdx.x == 3) __syncwarp();
	else __syncthreads();
	a.dst[threadIdx.x] = 1;
}
`), 0o600))
	so := filepath.Join(t.TempDir(), "faulty.so")
	require.NoError(t, BuildKernel(so, source))
	shape := cuda.Shape{Grid: [3]uint32{1, 1, 1}, Block: [3]uint32{64, 1, 1}}
	type args struct{ dst cuda.Ptr }
	run := func(t *testing.T, name string, f func(*cuda.Thread, *cuda.Kernel) error) error {
		d, err := cuda.OpenDriver(dir)
		require.NoError(t, err)
		device, err := d.Open(0)
		require.NoError(t, err)
		defer device.Close()
		return device.Do(func(th *cuda.Thread) error {
			m, err := th.Load(append([]byte(so), 0))
			require.NoError(t, err)
			k, err := th.Kernel(m, name, 0)
			require.NoError(t, err)
			return f(th, k)
		})
	}
	t.Run("missing barrier", func(t *testing.T) {
		require.NoError(t, run(t, "unsynchronised", func(th *cuda.Thread, k *cuda.Kernel) error {
			dst, err := th.Alloc(256)
			require.NoError(t, err)
			require.NoError(t, cuda.Launch(th, k, shape, &args{dst}))
			want := make([]int32, 64)
			for i := range want {
				want[i] = int32(63 - i)
			}
			got := make([]int32, 64)
			require.NoError(t, cuda.Download(th, got, dst))
			require.NotEqual(t, want, got, "what was read had not been written yet")
			return nil
		}))
	})
	t.Run("divergent barriers", func(t *testing.T) {
		require.ErrorContains(t, run(t, "divergent", func(th *cuda.Thread, k *cuda.Kernel) error {
			dst, err := th.Alloc(256)
			require.NoError(t, err)
			require.NoError(t, cuda.Launch(th, k, shape, &args{dst}))
			return th.Wait()
		}), "barrier")
	})
	t.Run("write beside the memory", func(t *testing.T) {
		require.ErrorContains(t, run(t, "unsynchronised", func(th *cuda.Thread, k *cuda.Kernel) error {
			dst, err := th.Alloc(256)
			require.NoError(t, err)
			require.NoError(t, cuda.Launch(th, k, shape, &args{dst + 4}))
			return th.Wait()
		}), "beside an area of 256 bytes")
	})
	t.Run("another layout", func(t *testing.T) {
		require.ErrorContains(t, run(t, "divergent", func(th *cuda.Thread, k *cuda.Kernel) error {
			require.NoError(t, cuda.Launch(th, k, shape, &struct{ a, b cuda.Ptr }{}))
			return th.Wait()
		}), "another size")
	})
}
