//go:build cgo

package cuda_test

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// One warp that uses every instruction of mma.cuh once and writes what it holds.
const mmaSource = `
#include "mma.cuh"
struct Args {
	const uint16_t *x, *y; // [16][16], half precision; the last two rows of y are not to be read
	const float *numbers;  // [32]
	uint32_t *plain, *trans, *packed; // [32][4], [32][4], [32][4]
	float *f16, *bf16, *exp2;         // [2][32][4], [2][32][4], [32]
};
NC_BOUNDED(instructions, Args, 32, 1)
{
	NC_SHARED uint4 tiles[2 * 16 * 3 + 8]; // rows of 48 bytes, then numbers
	const int lane = (int)threadIdx.x;
	const nc_place x = nc_place_of(tiles), y = x + 16 * 48, numbers = y + 16 * 48;
	nc_copy16(x + lane / 2 * 48 + lane % 2 * 16, a.x + 8 * lane, true);
	nc_commit();
	nc_copy16(y + lane / 2 * 48 + lane % 2 * 16, a.y + 8 * lane, lane / 2 < 14);
	nc_copy4(numbers + 4 * lane, a.numbers + lane, lane != 5);
	nc_commit();
	nc_await<1>(); // x is there
	__syncwarp();
	uint32_t left[4], right[4], turned[4];
	nc_ldmatrix(left, x + lane % 16 * 48 + lane / 16 * 16);
	nc_await<0>();
	__syncwarp();
	nc_ldmatrix(right, y + (lane / 16 * 8 + lane % 8) * 48 + lane / 8 % 2 * 16);
	nc_ldmatrix_trans(turned, y + lane % 16 * 48 + lane / 16 * 16);
	const float v = ((const float *)(tiles + 2 * 16 * 3))[lane];
	for (int i = 0; i < 4; i++) {
		a.plain[4 * lane + i] = right[i];
		a.trans[4 * lane + i] = turned[i];
	}
	// X times Y transposed in half precision, X times Y in bfloat16: columns 0 to 7, then 8 to 15.
	for (int n = 0; n < 2; n++) {
		float d[4] = {1, 1, 1, 1}, e[4] = {0, 0, 0, 0};
		uint32_t bf[4];
		for (int i = 0; i < 4; i++)
			bf[i] = nc_half_to_bf16(left[i]);
		nc_mma_f16(d, left, right[2 * n], right[2 * n + 1]);
		nc_mma_bf16(e, bf, nc_half_to_bf16(turned[2 * n]), nc_half_to_bf16(turned[2 * n + 1]));
		for (int i = 0; i < 4; i++) {
			a.f16[(32 * n + lane) * 4 + i] = d[i];
			a.bf16[(32 * n + lane) * 4 + i] = e[i];
		}
	}
	a.packed[4 * lane] = nc_pack_half(v, 1);
	a.packed[4 * lane + 1] = nc_pack_half(-2, v);
	a.packed[4 * lane + 2] = nc_pack_bf16(v, 1);
	a.packed[4 * lane + 3] = nc_pack_bf16(-2, v);
	a.exp2[lane] = nc_exp2(v);
}
`

// textKernel loads a kernel of a source on the device, the machine's or the emulated one.
func textKernel(t *testing.T, th *cuda.Thread, source, name string) (*cuda.Kernel, error) {
	t.Helper()
	var image []byte
	if cudatest.OnGPU(os.Getenv) {
		c, err := cuda.OpenCompiler(cuda.LibDirs(os.Getenv)...)
		if err != nil {
			return nil, err
		}
		if image, err = c.CompileText(name+".cu", source, th.Device().Arch()); err != nil {
			return nil, err
		}
	} else {
		dir := t.TempDir()
		cu, so := filepath.Join(dir, name+".cu"), filepath.Join(dir, name+".so")
		if err := os.WriteFile(cu, []byte(source), 0o600); err != nil {
			return nil, err
		}
		if err := cudatest.BuildKernel(so, cu); err != nil {
			return nil, err
		}
		image = append([]byte(so), 0)
	}
	m, err := th.Load(image)
	if err != nil {
		return nil, err
	}
	return th.Kernel(m, name, 0)
}

// The layouts are those that PTX gives for mma.m16n8k16 and ldmatrix. The elements are small whole
// numbers, so sums are exact.
func TestInstructionsOfTensorCores(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 77, 1)
	var x, y [16][16]float32
	var halfX, halfY []uint16
	for i := range 16 {
		for j := range 16 {
			x[i][j], y[i][j] = float32(r.IntN(64)-32), float32(r.IntN(64)-32)
			halfX, halfY = append(halfX, kernels.F32ToF16(x[i][j])), append(halfY, kernels.F32ToF16(y[i][j]))
			if i >= 14 {
				y[i][j] = 0
			}
		}
	}
	numbers := make([]float32, 32)
	for i := range numbers {
		numbers[i] = float32(r.NormFloat64() * 20)
	}
	copy(numbers, []float32{0, -126, float32(math.Inf(-1)), -200, 1 + 1.0/512, 99, 65520, 127.5})
	var plain, trans, packed []uint32
	var f16, bf16, exp2 []float32
	v, _ := cudatest.Open(t, os.Getenv)
	err := v.Do(func(th *cuda.Thread) error {
		k, err := textKernel(t, th, mmaSource, "instructions")
		if err != nil {
			return err
		}
		args := struct{ x, y, numbers, plain, trans, packed, f16, bf16, exp2 cuda.Ptr }{
			put(t, th, halfX), put(t, th, halfY), put(t, th, numbers), put(t, th, make([]uint32, 128)), put(t, th, make([]uint32, 128)), put(t, th, make([]uint32, 128)),
			put(t, th, make([]float32, 256)), put(t, th, make([]float32, 256)), put(t, th, make([]float32, 32)),
		}
		if err := cuda.Launch(th, k, cuda.Shape{Grid: [3]uint32{1, 1, 1}, Block: [3]uint32{32, 1, 1}}, &args); err != nil {
			return err
		}
		plain, trans, packed = get[uint32](t, th, args.plain, 128), get[uint32](t, th, args.trans, 128), get[uint32](t, th, args.packed, 128)
		f16, bf16, exp2 = get[float32](t, th, args.f16, 256), get[float32](t, th, args.bf16, 256), get[float32](t, th, args.exp2, 32)
		return nil
	})
	v.Close()
	require.NoError(t, err)

	half := func(low, high float32) uint32 {
		return uint32(kernels.F32ToF16(low)) | uint32(kernels.F32ToF16(high))<<16
	}
	brain := func(low, high float32) uint32 {
		var to [2]uint16
		reference(t).BF16(to[:], 1, []float32{low, high})
		return uint32(to[0]) | uint32(to[1])<<16
	}
	numbers[5] = 0 // it was not copied
	for lane := range 32 {
		g, c := lane/4, 2*(lane%4)
		require.Equal(t, []uint32{half(y[g][c], y[g][c+1]), half(y[g][c+8], y[g][c+9]), half(y[g+8][c], y[g+8][c+1]), half(y[g+8][c+8], y[g+8][c+9])}, plain[4*lane:][:4], "ldmatrix, lane %d", lane)
		require.Equal(t, []uint32{half(y[c][g], y[c+1][g]), half(y[c+8][g], y[c+9][g]), half(y[c][g+8], y[c+1][g+8]), half(y[c+8][g+8], y[c+9][g+8])}, trans[4*lane:][:4], "ldmatrix.trans, lane %d", lane)
		for n := range 2 {
			for i := range 4 {
				row, column := g+i/2*8, 8*n+c+i%2
				rows, columns := float32(1), float32(0)
				for k := range 16 {
					rows += x[row][k] * y[column][k]
					columns += x[row][k] * y[k][column]
				}
				require.Equal(t, rows, f16[(32*n+lane)*4+i], "f16, row %d, column %d", row, column)
				require.Equal(t, columns, bf16[(32*n+lane)*4+i], "bf16, row %d, column %d", row, column)
			}
		}
		w := numbers[lane]
		require.Equal(t, []uint32{half(w, 1), half(-2, w), brain(w, 1), brain(-2, w)}, packed[4*lane:][:4], "%v", w)
		if w > 128 {
			require.True(t, math.IsInf(float64(exp2[lane]), 1))
			continue
		}
		require.InEpsilon(t, 1+math.Exp2(float64(w)), 1+float64(exp2[lane]), 1.0/(1<<22), "exp2(%v)", w)
	}
}
