//go:build cgo

package cuda_test

import (
	"math"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// quantised is all that a launch has left in an Act for some tokens.
type quantised struct {
	q     []int8
	scale []uint32
	sums  []int32
}

func actOf(t *testing.T, th *cuda.Thread, a *cuda.Act, n int) quantised {
	return quantised{get[int8](t, th, a.Q, n*a.Stride), bits(get[float32](t, th, a.Scale, n)), get[int32](t, th, a.Sums, n*a.Groups())}
}

// computeForward is compute with the fused kernels as well.
func computeForward(t *testing.T, f func(*cuda.Thread, *cuda.Ops, *cuda.Forward)) {
	t.Helper()
	computeWith(t, (*cuda.Thread).Forward, f)
}

// The fused kernels give the bits of the single ones, for every shape of vector, group and
// block, also for zeros, infinities and NaN.
func TestForwardGivesTheBitsOfTheSingleKernels(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 5, 6)
	const n = 11 // tokens: no multiple of what a block takes
	for _, x := range []struct{ cols, group int }{{64, 64}, {96, 64}, {160, 128}, {256, 256}, {96, 96}, {1540, 1540}, {384, 128}, {3072, 256}} {
		values := vector(r, n*4*x.cols)
		clear(values[:x.cols])
		for i := range x.cols { // quotients at halves and beside them, and of a scale that has no reciprocal
			values[3*x.cols+i] = math.Float32frombits(math.Float32bits(float32(i%127)+0.5) + uint32(i%5) - 2)
			values[4*x.cols+i] = values[3*x.cols+i] * 0x1.8p-131
			values[5*x.cols+i] = values[3*x.cols+i] * 0.3
		}
		values[3*x.cols], values[4*x.cols], values[5*x.cols] = 127, 127*0x1.8p-131, 127*0.3
		values[x.cols+3], values[2*x.cols+5] = float32(math.Inf(-1)), float32(math.NaN())
		computeForward(t, func(th *cuda.Thread, o *cuda.Ops, f *cuda.Forward) {
			var err error
			acts := [2]cuda.Act{}
			for i := range acts {
				acts[i], err = th.NewAct(n+1, x.cols, x.group)
				require.NoError(t, err)
			}
			same := func(what string) {
				t.Helper()
				require.Equal(t, actOf(t, th, &acts[0], n), actOf(t, th, &acts[1], n), "%s %+v", what, x)
			}
			in, weight := put(t, th, values), put(t, th, vector(r, x.cols))
			require.NoError(t, o.Quantize(&acts[0], in, n))
			require.NoError(t, f.Quantize(&acts[1], in, 0, 1e-5, n))
			same("quantize")
			require.NoError(t, o.RMSNormQuantize(&acts[0], 0, in, weight, 1e-5, n))
			require.NoError(t, f.Quantize(&acts[1], in, weight, 1e-5, n))
			same("norm")

			up, gate, both := make([]float32, n*x.cols), make([]float32, n*x.cols), make([]float32, 2*n*x.cols)
			copy(both, values)
			for i := range n {
				copy(up[i*x.cols:], both[2*i*x.cols:][:x.cols])
				copy(gate[i*x.cols:], both[(2*i+1)*x.cols:][:x.cols])
			}
			upP, gateP, bothP, hidden := put(t, th, up), put(t, th, gate), put(t, th, both), put(t, th, up)
			for _, kind := range []cuda.Activation{cuda.ReLU2, cuda.ReLU2GLU, cuda.SwiGLU} {
				require.NoError(t, o.Activate(hidden, gateP, upP, n*x.cols, kind))
				from := bothP
				if kind == cuda.ReLU2 {
					from = upP
				}
				require.NoError(t, o.Quantize(&acts[0], hidden, n))
				require.NoError(t, f.Activate(&acts[1], from, 0, kind, 1e-5, n))
				same("activate")
				require.NoError(t, o.RMSNormQuantize(&acts[0], 0, hidden, weight, 1e-5, n))
				require.NoError(t, f.Activate(&acts[1], from, weight, kind, 1e-5, n))
				same("activate, norm")
			}

			y, initial, scalars := put(t, th, vector(r, n*x.cols)), put(t, th, vector(r, n*x.cols)), put(t, th, []float32{0.9, 0.3})
			coefs := put(t, th, vector(r, (n+1)*cuda.CoefFloats))
			for _, streams := range []int{1, 2, 4} {
				size := n * streams * x.cols
				memory := func() cuda.Ptr { return put(t, th, make([]float32, size)) }
				want, got := [2]cuda.Ptr{memory(), memory()}, [2]cuda.Ptr{memory(), memory()}
				u := put(t, th, make([]float32, n*x.cols))
				// Scalars of their own, then the writing: as in one launch.
				require.NoError(t, o.Mix(cuda.Mix{X: in, Out: want[1], Initial: initial, Scalars: scalars}, n, streams, x.cols))
				require.NoError(t, o.Mix(cuda.Mix{X: want[1], Out: want[0], Y: y, Write: coefs, Mean: u}, n, streams, x.cols))
				require.NoError(t, o.RMSNormQuantize(&acts[0], 0, u, weight, 1e-5, n))
				prior := cuda.ForwardMix{Mix: cuda.Mix{X: in, Out: got[0], Y: y, Write: coefs, Initial: initial}, Prior: scalars}
				require.NoError(t, f.Mix(&acts[1], &prior, weight, 1e-5, n, streams))
				same("prior")
				require.Equal(t, bits(get[float32](t, th, want[0], size)), bits(get[float32](t, th, got[0], size)))
				for i, m := range []cuda.Mix{
					{Y: y, Initial: initial, Scalars: scalars, Write: coefs, Read: coefs + 4*cuda.CoefFloats},
					{Y: y, Write: coefs, Read: coefs + 4*cuda.CoefFloats},
					{Initial: initial, Scalars: scalars, Read: coefs},
					{Y: y, Write: coefs, CoefStride: cuda.CoefFloats},
				} {
					m.X, m.Out, m.Left = in, want[0], want[1]
					single := m
					if m.Read == 0 {
						single.Mean = u
					} else {
						single.U = u
					}
					require.NoError(t, o.Mix(single, n, streams, x.cols))
					require.NoError(t, o.RMSNormQuantize(&acts[0], 0, u, weight, 1e-5, n))
					m.Out, m.Left = got[0], got[1]
					require.NoError(t, f.Mix(&acts[1], &cuda.ForwardMix{Mix: m}, weight, 1e-5, n, streams))
					same("mix")
					for k := range want {
						require.Equal(t, bits(get[float32](t, th, want[k], size)), bits(get[float32](t, th, got[k], size)), "%d streams, case %d", streams, i)
					}
				}
			}
		})
	}
}

func TestForwardRefuses(t *testing.T) {
	computeForward(t, func(th *cuda.Thread, _ *cuda.Ops, f *cuda.Forward) {
		a, err := th.NewAct(4, 64, 64)
		require.NoError(t, err)
		require.ErrorContains(t, f.Quantize(&a, 0, 0, 0, 5), "room for 4")
		a.Group = 16
		require.ErrorContains(t, f.Activate(&a, 0, 0, cuda.ReLU2, 0, 4), "groups")
		a.Group, a.Cols = 1<<20, 1<<20
		require.ErrorContains(t, f.Quantize(&a, 0, 0, 0, 4), "fit")
		a = cuda.Act{Tokens: 4, Cols: 64, Stride: 64, Group: 64}
		require.ErrorContains(t, f.Mix(&a, &cuda.ForwardMix{}, 1, 0, 4, 3), "streams")
		require.ErrorContains(t, f.Mix(&a, &cuda.ForwardMix{}, 0, 0, 4, 1), "norm")
	})
}
