//go:build cgo

package cuda_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// gemm compares products with the reference, bit by bit.
func gemm(t *testing.T, th *cuda.Thread, o *cuda.Ops, r *rand.Rand, tokens, rows, cols, group, extra int) {
	t.Helper()
	set, err := kernels.ByName("go")
	require.NoError(t, err)
	w := random(r, rows, cols, group)
	x := kernels.NewAct(tokens, cols, group)
	for i := range tokens {
		x.Set(set, i, vector(r, cols))
	}
	ldd := rows + extra
	want := make([]float32, tokens*ldd)
	for i := range want {
		want[i] = -7
	}
	dst := put(t, th, want)
	set.TernaryGEMM(want, ldd, w, x, 0, rows, make([]byte, kernels.GEMMScratch(tokens, cols)))
	dw, err := th.UploadTernary(w)
	require.NoError(t, err)
	a := cuda.Act{Tokens: tokens, Cols: cols, Stride: x.Stride, Group: group, Q: put(t, th, x.Q), Scale: put(t, th, x.Scale), Sums: put(t, th, x.Sums)}
	start := get[float32](t, th, dst, len(want))
	for name, f := range map[string]func() error{
		"the kernel for the device": func() error { return o.Ternary(dst, ldd, &dw, &a, tokens) },
		"small pieces":              func() error { return o.GEMMBy(true, dst, ldd, &dw, &a, tokens) },
		"large pieces":              func() error { return o.GEMMBy(false, dst, ldd, &dw, &a, tokens) },
	} {
		require.NoError(t, cuda.Upload(th, dst, start))
		require.NoError(t, f())
		require.Equal(t, bits(want), bits(get[float32](t, th, dst, len(want))), "%s: %d tokens, %d x %d in groups of %d", name, tokens, rows, cols, group)
	}
}

func TestHopperGivesTheBitsOfTheReference(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 11, 12)
	compute(t, func(th *cuda.Thread, o *cuda.Ops) {
		require.Empty(t, o.Notices())
		if !o.ForceHopper(2) {
			t.Skip("the device is not of compute capability 9.0")
		}
		for _, c := range []struct{ tokens, rows, cols, group, extra int }{
			{130, 144, 1424, 128, 3}, // pieces of both kinds, more stages than slots, tails everywhere
			{64, 272, 640, 128, 4}, {129, 40, 256, 64, 0}, {70, 20, 208, 64, 1}, {64, 30, 80, 80, 0}, {66, 129, 1040, 512, 2}, {65, 16, 400, 400, 0},
		} {
			gemm(t, th, o, r, c.tokens, c.rows, c.cols, c.group, c.extra)
		}
		// One block: tokens stay while rows pass, others take their place; rings turn more than once.
		o.ForceHopper(1)
		gemm(t, th, o, r, 140, 260, 512, 128, 2)
		gemm(t, th, o, r, 129, 150, 208, 64, 0)
		gemm(t, th, o, r, 64, 140, 1300, 128, 0)
	})
}

// A descriptor has its fields where PTX says (matrix descriptor of wgmma).
func TestHopperDescriptor(t *testing.T) {
	libraries(t)
	source, so := filepath.Join(t.TempDir(), "descriptor.cu"), filepath.Join(t.TempDir(), "descriptor.so")
	require.NoError(t, os.WriteFile(source, []byte(`
#include "hopper.cuh"
struct Args { uint64_t *dst; uint32_t address; };
NC_KERNEL(describe, Args) { *a.dst = nc_descriptor(a.address); }
`), 0o600))
	require.NoError(t, cudatest.BuildKernel(so, source))
	v := device(t)
	require.NoError(t, v.Do(func(th *cuda.Thread) error {
		m, err := th.Load(append([]byte(so), 0))
		require.NoError(t, err)
		k, err := th.Kernel(m, "describe", 0)
		require.NoError(t, err)
		for _, address := range []uint32{0, 1024, 0x2c420, 0x3fc00} {
			dst := put(t, th, make([]uint64, 1))
			require.NoError(t, cuda.Launch(th, k, cuda.Shape{Grid: [3]uint32{1, 1, 1}, Block: [3]uint32{1, 1, 1}}, &struct {
				dst     cuda.Ptr
				address uint32
				_       uint32
			}{dst: dst, address: address}))
			d := get[uint64](t, th, dst, 1)[0]
			field := func(first, bits int) uint64 { return d >> first & (1<<bits - 1) }
			require.Equal(t, uint64(address/16), field(0, 14), fmt.Sprintf("address %#x", address))
			require.Equal(t, uint64(0), field(14, 2))
			require.Equal(t, uint64(1), field(16, 14), "the leading offset, in 16 bytes; ignored")
			require.Equal(t, uint64(0), field(30, 2))
			require.Equal(t, uint64(64), field(32, 14), "1024 bytes from eight columns to the next, in 16 bytes")
			require.Equal(t, uint64(0), field(46, 3))
			require.Equal(t, uint64(0), field(49, 3), "the base offset of aligned matrices")
			require.Equal(t, uint64(0), field(52, 10))
			require.Equal(t, uint64(1), field(62, 2), "128 bytes are exchanged")
			require.NoError(t, th.Free(dst))
		}
		return nil
	}))
}

// Kernels for this generation that compute something else, or wait in vain, are not used, and a notice
// says so.
func TestHopperThatIsWrong(t *testing.T) {
	libraries(t)
	for body, notice := range map[string]string{
		"(void)a;":                   "ternary_wgmma computes 0 for row 0 of token 0",
		"*(int32_t *)a.rest[3] = 1;": "ternary_wgmma waits for something that does not come",
	} {
		source, so := filepath.Join(t.TempDir(), "hopper.cu"), filepath.Join(t.TempDir(), "hopper.so")
		text := "#include \"hopper.cuh\"\nstruct Args { nc_map maps[3]; uint64_t rest[8]; };\n" // failed is rest[3]
		for _, name := range []string{"ternary_wgmma", "ternary_wgmma_64", "ternary_wgmma_long"} {
			text += "NC_GRID_KERNEL(" + name + ", Args, 384) { " + body + " }\n"
		}
		require.NoError(t, os.WriteFile(source, []byte(text), 0o600))
		require.NoError(t, cudatest.BuildKernel(so, source))
		v, image := cudatest.Open(t, os.Getenv)
		require.NoError(t, v.Do(func(th *cuda.Thread) error {
			o, err := th.Ops(func(name, arch string) ([]byte, error) {
				if name == "hopper" {
					return append([]byte(so), 0), nil
				}
				return image(name, arch)
			})
			require.NoError(t, err)
			require.Len(t, o.Notices(), 1)
			require.Contains(t, o.Notices()[0], notice)
			require.False(t, o.ForceHopper(1))
			gemm(t, th, o, cudatest.Rand(os.Getenv, 1, 2), 64, 64, 256, 128, 0)
			return nil
		}))
		v.Close()
	}
}

// What is turned off is not used, a notice says so, and a name that is none is an error.
func TestFeaturesThatAreOff(t *testing.T) {
	setup := cuda.FromEnvironment(func(name string) string { return map[string]string{cuda.OffVariable: "early, hopper,"}[name] }, "")
	require.Equal(t, []string{"early", "hopper"}, setup.Off)
	setup.LibDirs = []string{libraries(t)}
	v, _, err := setup.Open(0)
	require.NoError(t, err)
	defer v.Close()
	require.NoError(t, v.Do(func(th *cuda.Thread) error {
		o, err := th.Ops(cudatest.Image)
		require.NoError(t, err)
		require.Equal(t, []string{"the products for sm_90a are turned off by NANOCHAT_CUDA_OFF; slower ones are used"}, o.Notices())
		require.False(t, o.ForceHopper(1))
		gemm(t, th, o, cudatest.Rand(os.Getenv, 1, 2), 64, 64, 256, 128, 0)
		return nil
	}))
	setup.Off = []string{"hoper"}
	_, _, err = setup.Open(0)
	require.EqualError(t, err, `cuda: open: there is no "hoper" to turn off`)
}
