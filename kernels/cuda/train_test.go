//go:build cgo

package cuda_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// training runs f with the kernels on a device of its own that says it has that many multiprocessors, so
// that blocks go over several tokens; 0: as many as it has.
func training(t *testing.T, multiprocessors int, f func(*cuda.Thread, *cuda.Train)) {
	t.Helper()
	onDevice(t, func(v *cuda.Device) {
		if multiprocessors > 0 {
			v.Multiprocessors = multiprocessors
		}
	}, (*cuda.Thread).Train, f)
}

// area is device memory of n elements, full of NaN, between guards.
type area[T cuda.Element] struct {
	th *cuda.Thread
	at cuda.Ptr
	n  int
}

const areaGuard = 256

func areaOf[T cuda.Element](t *testing.T, th *cuda.Thread, n int) area[T] {
	t.Helper()
	var zero T
	bytes := uint64(n) * uint64(unsafe.Sizeof(zero))
	p, err := th.Alloc(bytes + 2*areaGuard)
	require.NoError(t, err)
	require.NoError(t, th.Fill(p, 0xFF, bytes+2*areaGuard))
	return area[T]{th, p + areaGuard, n}
}

// filled is an area with x in it.
func filled[T cuda.Element](t *testing.T, th *cuda.Thread, x []T) area[T] {
	t.Helper()
	a := areaOf[T](t, th, len(x))
	require.NoError(t, cuda.Upload(th, a.at, x))
	return a
}

// read downloads, and checks that nothing was written beside.
func (a area[T]) read(t *testing.T) []T {
	t.Helper()
	var zero T
	size := a.n * int(unsafe.Sizeof(zero))
	b := make([]byte, size+2*areaGuard)
	require.NoError(t, cuda.Download(a.th, b, a.at-areaGuard))
	want := bytes.Repeat([]byte{0xFF}, areaGuard)
	require.Equal(t, want, b[:areaGuard], "in front of the result")
	require.Equal(t, want, b[areaGuard+size:], "behind the result")
	x := make([]T, a.n)
	require.NoError(t, cuda.Download(a.th, x, a.at))
	return x
}

// near requires got to be want but for an L2 error of that part of it.
func near(t *testing.T, want, got []float32, tolerance float64, what string, args ...any) {
	t.Helper()
	require.Len(t, got, len(want))
	sum, diff := 0.0, 0.0
	for i, v := range want {
		sum += float64(v) * float64(v)
		d := float64(got[i]) - float64(v)
		diff += d * d
	}
	require.False(t, math.IsNaN(diff), "NaN in "+what, args)
	require.LessOrEqual(t, math.Sqrt(diff), tolerance*math.Sqrt(sum), fmt.Sprintf(what, args...))
}

// nearBF16 requires numbers to be those of want in bfloat16 but for 2^-8 of each and tolerance of their
// length: where two float32 differ in a bit, their bfloat16 may be neighbours.
func nearBF16(t *testing.T, want []float32, got []uint16, tolerance float64, what string, args ...any) {
	t.Helper()
	require.Len(t, got, len(want))
	sum := 0.0
	for _, v := range want {
		sum += float64(v) * float64(v)
	}
	small := tolerance * math.Sqrt(sum/float64(len(want)))
	for i, v := range want {
		g := float64(kernels.BF16ToF32(got[i]))
		require.LessOrEqual(t, math.Abs(g-float64(v)), math.Abs(float64(v))/256+small, what+" %v: element %d is %v, expected %v", args, i, g, v)
	}
}

// halves is x in bfloat16, a·x rounded first.
func halves(set *kernels.Set, a float32, x []float32) []uint16 {
	dst := make([]uint16, len(x))
	set.BF16(dst, a, x)
	return dst
}

// gainOf is that of core/model.
func gainOf(scale float32) float32 {
	if scale > 1e-30 && scale < 1e30 {
		return scale
	}
	return 1
}

// inputs is the int8 input of a product on the device, with scales that are no gain among them.
type inputs struct {
	act  *cuda.Act
	host *kernels.Act
	xb   area[uint16]
}

func inputsOf(t *testing.T, th *cuda.Thread, r *rand.Rand, tokens, cols int) *inputs {
	t.Helper()
	a := kernels.NewAct(tokens, cols, cols)
	for i := range a.Q {
		a.Q[i] = int8(r.IntN(255) - 127)
	}
	for i := range a.Scale {
		a.Scale[i] = float32(math.Exp2(r.Float64()*20 - 15))
	}
	for i, v := range []float32{0, float32(math.NaN()), 1e31, float32(math.Inf(1)), 1e-31} {
		if tokens > 2*i+1 {
			a.Scale[2*i+1] = v
		}
	}
	d := &cuda.Act{Tokens: tokens, Cols: cols, Stride: a.Stride, Group: cols, Q: filled(t, th, a.Q).at, Scale: filled(t, th, a.Scale).at}
	return &inputs{d, a, areaOf[uint16](t, th, tokens*cols)}
}

func (x *inputs) factor() cuda.Factor { return cuda.Factor{Act: x.act, BF16: x.xb.at} }

func (x *inputs) gain(i int) float32 { return gainOf(x.host.Scale[i]) }

// scaled is x with each token's vector times its gain: what a product with dyb gives.
func (x *inputs) scaled(set *kernels.Set, d []float32) []float32 {
	out := slices.Clone(d)
	n := len(d) / len(x.host.Scale)
	for i := range x.host.Scale {
		set.Scale(out[i*n:][:n], x.gain(i), out[i*n:][:n])
	}
	return out
}

// divided is d with each token's vector divided by its gain, as core/model divides.
func (x *inputs) divided(set *kernels.Set, d []float32) []float32 {
	out := slices.Clone(d)
	n := len(d) / len(x.host.Scale)
	for i := range x.host.Scale {
		if g := x.gain(i); g != 1 {
			set.Scale(out[i*n:][:n], 1/g, out[i*n:][:n])
		}
	}
	return out
}

// check requires the factors to be the int8 values.
func (x *inputs) check(t *testing.T, set *kernels.Set) {
	t.Helper()
	got, want := x.xb.read(t), make([]uint16, x.host.Cols)
	for i := range x.host.Scale {
		set.BF16FromI8(want, x.host.Q[i*x.host.Stride:][:x.host.Cols])
		require.Equal(t, want, got[i*x.host.Cols:][:x.host.Cols], "factors of token %d", i)
	}
}

// partial is a destination of partial sums and its scratch.
type partial struct {
	dst     area[float32]
	before  []float32
	scratch cuda.Ptr
}

func partialOf(t *testing.T, th *cuda.Thread, x *cuda.Train, r *rand.Rand, tokens, width, n int) *partial {
	t.Helper()
	p := &partial{before: vector(r, n)}
	p.dst = filled(t, th, p.before)
	p.scratch = areaOf[uint8](t, th, int(x.PartialBytes(tokens, width))).at
	return p
}

// check requires what was added to be want.
func (p *partial) check(t *testing.T, x *cuda.Train, s cuda.PartialSum, want []float32, what string) {
	t.Helper()
	require.NoError(t, x.AddPartials(s.Into(p.dst.at)))
	sum := slices.Clone(p.before)
	for i, v := range want {
		sum[i] += v
	}
	near(t, sum, p.dst.read(t), 1e-5, "gradient of %s", what)
}

func TestActivateBack(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 21, 22)
	for _, c := range []struct {
		tokens, ffn, dim int
		norm             bool
	}{{11, 80, 48, false}, {5, 1040, 32, false}, {40, 80, 32, true}, {5, 2064, 32, true}, {3, 3104, 32, true}, {2, 4112, 32, true}, {1, 8208, 16, true}} {
		for kind := range []cuda.Activation{cuda.ReLU2, cuda.ReLU2GLU, cuda.SwiGLU} {
			t.Run(fmt.Sprint(c, kind), func(t *testing.T) {
				wide := 2 * c.ffn
				if kind == int(cuda.ReLU2) {
					wide = c.ffn
				}
				d, rows, weight := vector(r, c.tokens*c.ffn), vector(r, c.tokens*wide), vector(r, c.ffn)
				rows[0], rows[wide-1] = 100, -200 // beyond the range of exp
				training(t, 1, func(th *cuda.Thread, x *cuda.Train) {
					in, ff := inputsOf(t, th, r, c.tokens, c.dim), inputsOf(t, th, r, c.tokens, c.ffn)
					part := partialOf(t, th, x, r, c.tokens, c.ffn, c.ffn)
					dyb := areaOf[uint16](t, th, c.tokens*wide)
					a := &cuda.ActivateBack{
						D: put(t, th, ff.scaled(set, d)), Rows: put(t, th, rows), Partial: part.scratch, Act: ff.act, DYB: dyb.at,
						Input: in.factor(), FFN: c.ffn, Kind: cuda.Activation(kind), Eps: 1e-5,
					}
					if c.norm {
						a.Weight = put(t, th, weight)
					}
					scaled := ff.scaled(set, d)
					if c.tokens%2 == 0 { // as a product may leave them
						half := halves(set, 1, scaled)
						for i, h := range half {
							scaled[i] = kernels.BF16ToF32(h)
						}
						a.D, a.HalfD = put(t, th, half), true
					}
					sums, err := x.ActivateBack(a, c.tokens)
					require.NoError(t, err)

					got, dweight := dyb.read(t), make([]float32, c.ffn)
					g := ff.divided(set, scaled)
					for i := range c.tokens {
						row := rows[i*wide:][:wide]
						up, gate := row[:c.ffn], row[wide-c.ffn:]
						dx, hidden := g[i*c.ffn:][:c.ffn], make([]float32, c.ffn)
						want := make([]float32, wide)
						switch cuda.Activation(kind) {
						case cuda.ReLU2:
							set.ReLU2(hidden, up)
						case cuda.ReLU2GLU:
							set.ReLU2GLU(hidden, gate, up)
						default:
							set.SwiGLU(hidden, gate, up)
						}
						if c.norm {
							set.RMSNormBackward(dx, dweight, dx, hidden, weight, 1e-5)
						}
						switch cuda.Activation(kind) {
						case cuda.ReLU2:
							set.ReLU2Backward(want, dx, up)
						case cuda.ReLU2GLU:
							set.ReLU2GLUBackward(want[c.ffn:], want[:c.ffn], dx, gate, up)
						default:
							set.SwiGLUBackward(want[c.ffn:], want[:c.ffn], dx, gate, up)
						}
						if !c.norm {
							require.Equal(t, halves(set, in.gain(i), want), got[i*wide:][:wide], "token %d", i)
							continue
						}
						set.Scale(want, in.gain(i), want)
						nearBF16(t, want, got[i*wide:][:wide], 1e-5, "token %d", i)
					}
					in.check(t, set)
					if c.norm {
						part.check(t, x, sums, dweight, "the norm")
					} else {
						require.Equal(t, cuda.PartialSum{}, sums)
					}
				})
			})
		}
	}
}

func TestSubNormBack(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 23, 24)
	for _, c := range []struct {
		tokens, width int
		norm          bool
	}{{40, 48, true}, {7, 48, false}, {3, 2064, true}, {3, 2064, false}, {1, 8192, true}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			d, v, weight := vector(r, c.tokens*c.width), vector(r, c.tokens*c.width), vector(r, c.width)
			training(t, 1, func(th *cuda.Thread, x *cuda.Train) {
				out := inputsOf(t, th, r, c.tokens, c.width)
				part := partialOf(t, th, x, r, c.tokens, c.width, c.width)
				dst := areaOf[uint16](t, th, c.tokens*c.width)
				a := &cuda.SubNormBack{D: put(t, th, out.scaled(set, d)), Act: out.act, Dst: dst.at, Input: out.factor(), Width: c.width, Eps: 1e-5}
				if c.norm {
					a.Weight, a.X, a.Partial = put(t, th, weight), put(t, th, v), part.scratch
				}
				scaled := out.scaled(set, d)
				if c.tokens%2 == 0 {
					half := halves(set, 1, scaled)
					for i, h := range half {
						scaled[i] = kernels.BF16ToF32(h)
					}
					a.D, a.HalfD = put(t, th, half), true
				}
				sums, err := x.SubNormBack(a, c.tokens)
				require.NoError(t, err)
				got, dweight := dst.read(t), make([]float32, c.width)
				g := out.divided(set, scaled)
				for i := range c.tokens {
					dx := g[i*c.width:][:c.width]
					if !c.norm {
						require.Equal(t, halves(set, 1, dx), got[i*c.width:][:c.width])
						continue
					}
					set.RMSNormBackward(dx, dweight, dx, v[i*c.width:][:c.width], weight, 1e-5)
					nearBF16(t, dx, got[i*c.width:][:c.width], 1e-5, "token %d", i)
				}
				out.check(t, set)
				if c.norm {
					part.check(t, x, sums, dweight, "the norm")
				}
			})
		})
	}
}

func TestFactorsAndRound(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 25, 26)
	training(t, 1, func(th *cuda.Thread, x *cuda.Train) {
		in := inputsOf(t, th, r, 70, 144)
		half := areaOf[uint16](t, th, 70*144)
		require.NoError(t, x.Factors(cuda.Factor{Act: in.act, BF16: in.xb.at, F16: half.at}, 70))
		in.check(t, set)
		got := half.read(t)
		for i := range 70 {
			for j := range 144 {
				require.Equal(t, float32(in.host.Q[i*in.host.Stride+j]), kernels.F16ToF32(got[i*144+j]))
			}
		}
		v := vector(r, 9004)
		v[1], v[2], v[3] = 1e30, float32(math.Inf(-1)), 1e-30
		bf, f := areaOf[uint16](t, th, len(v)), areaOf[uint16](t, th, len(v))
		require.NoError(t, x.Round(bf.at, f.at, put(t, th, v), len(v)))
		gotB, gotF := bf.read(t), f.read(t)
		for i, w := range v {
			require.Equal(t, kernels.F32ToBF16(w), gotB[i])
			require.Equal(t, kernels.F32ToF16(w), gotF[i])
		}
		require.ErrorContains(t, x.Round(bf.at, f.at, bf.at, 3), "multiple of 4")
	})
}
