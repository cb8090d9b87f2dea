//go:build cgo

package cuda_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

func reference(t *testing.T) *kernels.Set {
	t.Helper()
	set, err := kernels.ByName("go")
	require.NoError(t, err)
	return set
}

// dense is a random matrix of a type, its values finite.
func dense(r *rand.Rand, kind kernels.DType, rows, cols int) *kernels.Dense {
	w := &kernels.Dense{Rows: rows, Cols: cols, Type: kind, Data: make([]byte, rows*kind.RowBytes(cols))}
	switch kind {
	case kernels.F32:
		for i := range rows * cols {
			binary.LittleEndian.PutUint32(w.Data[4*i:], math.Float32bits(float32(r.NormFloat64())))
		}
	case kernels.Q8_0:
		for i := range w.Data {
			w.Data[i] = byte(r.Uint32())
		}
		for i := 0; i < len(w.Data); i += 34 {
			binary.LittleEndian.PutUint16(w.Data[i:], kernels.F32ToF16(r.Float32()))
		}
	default:
		for i := range rows * cols {
			h := kernels.F32ToF16(float32(r.NormFloat64()))
			if kind == kernels.BF16 {
				h = uint16(math.Float32bits(float32(r.NormFloat64())) >> 16)
			}
			binary.LittleEndian.PutUint16(w.Data[2*i:], h)
		}
	}
	return w
}

func putDense(t *testing.T, th *cuda.Thread, w *kernels.Dense) *cuda.Dense {
	return &cuda.Dense{Rows: w.Rows, Cols: w.Cols, Type: int(w.Type), Data: put(t, th, w.Data)}
}

func TestEmbedAndLogitsGiveTheBitsOfTheReference(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 7, 8)
	for _, kind := range []kernels.DType{kernels.F32, kernels.F16, kernels.BF16, kernels.Q8_0} {
		w := dense(r, kind, 50, 96)
		x := vector(r, 3*96)
		act := kernels.NewAct(3, 96, 96)
		for i := range 3 {
			act.Set(set, i, x[i*96:])
		}
		const c = float32(15)
		compute(t, func(th *cuda.Thread, o *cuda.Ops) {
			d := putDense(t, th, w)
			ids := []int32{49, 0, 7}
			streams, first := put(t, th, make([]float32, 3*2*96)), put(t, th, make([]float32, 3*96))
			require.NoError(t, o.Embed(streams, first, d, put(t, th, ids), 3, 2))
			row := make([]float32, 96)
			got, initial := get[float32](t, th, streams, 3*2*96), get[float32](t, th, first, 3*96)
			for i, id := range ids {
				set.DenseRow(row, w, int(id))
				require.Equal(t, bits(row), bits(got[2*i*96:][:96]))
				require.Equal(t, bits(row), bits(got[(2*i+1)*96:][:96]))
				require.Equal(t, bits(row), bits(initial[i*96:][:96]))
			}

			h := &cuda.Head{Table: d, Softcap: c}
			if kind == kernels.Q8_0 {
				h.Act = &cuda.Act{Tokens: 3, Cols: 96, Stride: act.Stride, Group: 96, Q: put(t, th, act.Q), Scale: put(t, th, act.Scale)}
			} else {
				h.X = put(t, th, x)
			}
			which := []int32{2, 0}
			logits := put(t, th, make([]float32, 2*50))
			require.NoError(t, o.Logits(logits, h, put(t, th, which), 2))
			all := make([]float32, 3*50)
			if kind == kernels.Q8_0 {
				set.Q8GEMM(all, 50, w, act, 0, 50)
			} else {
				set.DenseGEMM(all, 50, w, x, 96, 3, 0, 50)
			}
			set.Softcap(all, c, all)
			require.Equal(t, bits(append(append([]float32{}, all[100:]...), all[:50]...)), bits(get[float32](t, th, logits, 100)))
		})
	}
}

func TestMixGivesTheBitsOfTheReference(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 9, 10)
	const tokens = 3
	// mixing is tokens Coefs, all the same unless each token has its own.
	mixing := func(each bool) (c [tokens]cuda.Coef) {
		for k := range c {
			for i := range 4 {
				c[k].Pre[i], c[k].Post[i] = r.Float32(), r.Float32()
				for j := range 4 {
					c[k].Res[i][j] = r.Float32()
				}
			}
			if !each {
				c[k] = c[0]
			}
		}
		return c
	}
	for _, c := range []struct {
		n, dim        int
		each, written bool
	}{{1, 80, false, true}, {1, 45, false, true}, {2, 80, false, true}, {2, 75, true, true}, {4, 80, false, false}, {4, 260, true, true}, {4, 30, true, true}} {
		n, dim := c.n, c.dim
		write, read := mixing(c.each), mixing(c.each)
		x, y, first, scalars := vector(r, tokens*n*dim), vector(r, tokens*dim), vector(r, tokens*dim), vector(r, 2)
		compute(t, func(th *cuda.Thread, o *cuda.Ops) {
			m := cuda.Mix{
				X: put(t, th, x), Y: put(t, th, y), Initial: put(t, th, first), Scalars: put(t, th, scalars),
				U: put(t, th, make([]float32, tokens*dim)), Mean: put(t, th, make([]float32, tokens*dim)),
				Write: put(t, th, coefs(write[:]...)), Read: put(t, th, coefs(read[:]...)),
			}
			if c.each {
				m.CoefStride = cuda.CoefFloats
			}
			if !c.written {
				m.Y = 0
			}
			check := func(m cuda.Mix, x []float32) {
				gotX, gotU, gotMean := get[float32](t, th, m.Out, len(x)), get[float32](t, th, m.U, tokens*dim), get[float32](t, th, m.Mean, tokens*dim)
				for token := range tokens {
					old, f := x[token*n*dim:][:n*dim], y[token*dim:][:dim]
					now, u, mean := append([]float32{}, old...), make([]float32, dim), make([]float32, dim)
					for i := range n {
						d := now[i*dim:][:dim]
						switch {
						case m.Y == 0:
						case n == 1:
							set.Add(d, old, f)
						default:
							w := &write[token]
							set.Scale(d, w.Res[i][0], old[:dim])
							for j := 1; j < n; j++ {
								set.Axpy(d, w.Res[i][j], old[j*dim:][:dim])
							}
							set.Axpy(d, w.Post[i], f)
						}
						if m.Left != 0 {
							require.Equal(t, bits(d), bits(get[float32](t, th, m.Left, len(x))[(token*n+i)*dim:][:dim]), "%+v", c)
						}
						if m.Scalars != 0 {
							set.Scale(d, scalars[0], d)
							set.Axpy(d, scalars[1], first[token*dim:][:dim])
						}
					}
					copy(u, now[:dim])
					copy(mean, now[:dim])
					for s := 1; s < n; s++ {
						if s == 1 {
							set.Scale(u, read[token].Pre[0], now[:dim])
						}
						set.Axpy(u, read[token].Pre[s], now[s*dim:][:dim])
						set.Add(mean, mean, now[s*dim:][:dim])
					}
					if n > 1 {
						set.Scale(mean, 1/float32(n), mean)
					}
					require.Equal(t, bits(now), bits(gotX[token*n*dim:][:n*dim]), "%+v", c)
					require.Equal(t, bits(u), bits(gotU[token*dim:][:dim]), "%+v", c)
					require.Equal(t, bits(mean), bits(gotMean[token*dim:][:dim]), "%+v", c)
				}
			}
			m.Out, m.Left = put(t, th, make([]float32, len(x))), put(t, th, make([]float32, len(x)))
			require.NoError(t, o.Mix(m, tokens, n, dim))
			check(m, x)
			require.Equal(t, bits(x), bits(get[float32](t, th, m.X, len(x))), "with Out, X stays")
			plain := m
			plain.Y, plain.Scalars, plain.Left = 0, 0, 0
			require.NoError(t, o.Mix(plain, tokens, n, dim))
			check(plain, x)
			m.Out, m.Left = 0, 0
			require.NoError(t, o.Mix(m, tokens, n, dim))
			m.Out = m.X
			check(m, x)
		})
	}
	compute(t, func(_ *cuda.Thread, o *cuda.Ops) {
		require.ErrorContains(t, o.Mix(cuda.Mix{}, 1, 3, 16), "want 1, 2 or 4")
		require.ErrorContains(t, o.Mix(cuda.Mix{CoefStride: 1}, 1, 2, 16), "floats between")
	})
}

// coefs is Coefs as the device has them.
func coefs(list ...cuda.Coef) (out []float32) {
	for _, c := range list {
		out = append(append(out, c.Pre[:]...), c.Post[:]...)
		for i := range c.Res {
			out = append(out, c.Res[i][:]...)
		}
	}
	return out
}

func TestActivationsGiveTheBitsOfTheReference(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 11, 12)
	gate, up := vector(r, 1000), vector(r, 1000)
	gate[0], gate[1], gate[2], up[3] = 80, -100, float32(math.Inf(1)), 0
	for kind, f := range []func(dst, gate, up []float32){
		cuda.ReLU2:    func(dst, _, up []float32) { set.ReLU2(dst, up) },
		cuda.ReLU2GLU: set.ReLU2GLU, cuda.SwiGLU: set.SwiGLU,
	} {
		want := make([]float32, len(up))
		f(want, gate, up)
		compute(t, func(th *cuda.Thread, o *cuda.Ops) {
			dst := put(t, th, gate)
			require.NoError(t, o.Activate(dst, dst, put(t, th, up), len(up), cuda.Activation(kind)))
			require.Equal(t, bits(want), bits(get[float32](t, th, dst, len(up))))
		})
	}
}

// Caches and attention: steps of a sequence of 150 positions, in pages that are not in order.
func TestRotateAndAttentionGiveTheBitsOfTheReference(t *testing.T) {
	set := reference(t)
	for _, c := range []struct {
		kind                   kernels.KVType
		heads, kv, dim, rotary int
		norms, interleaved     bool
	}{
		{kernels.KVF16, 4, 2, 64, 64, true, false}, {kernels.KVI8, 4, 4, 64, 64, false, false},
		{kernels.KVF16, 2, 1, 40, 20, false, true}, {kernels.KVF16, 2, 2, 128, 128, true, false}, {kernels.KVI8, 2, 1, 72, 72, true, true},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			r := cudatest.Rand(os.Getenv, 13, uint64(c.dim))
			const tokens, layers = 150, 2
			half := c.rotary / 2
			cos, sin := make([]float32, tokens*half), make([]float32, tokens*half)
			kernels.RoPETable(cos, sin, tokens, c.rotary, 10000, 1, nil)
			q, k, v := vector(r, tokens*c.heads*c.dim), vector(r, tokens*c.kv*c.dim), vector(r, tokens*c.kv*c.dim)
			var qNorm, kNorm []float32
			if c.norms {
				qNorm, kNorm = vector(r, c.dim), vector(r, c.dim)
			}
			layer := c.kv * c.kind.HeadBytes(c.dim)
			kv := kernels.KV{
				Type: c.kind, Heads: c.kv, HeadDim: c.dim, Pages: []int32{3, 0, 2}, PageBytes: layers * layer, LayerOffset: layer,
				Slab: kernels.AlignedBytes(4 * layers * layer),
			}
			wantQ, wantK := append([]float32{}, q...), append([]float32{}, k...)
			pos, pages := make([]int32, tokens), make([]int32, tokens)
			for i := range tokens {
				pos[i], pages[i] = int32(i), kv.Pages[i/kernels.PageLen]
				for _, side := range []struct {
					x, norm []float32
					heads   int
				}{{wantQ, qNorm, c.heads}, {wantK, kNorm, c.kv}} {
					x := side.x[i*side.heads*c.dim:][:side.heads*c.dim]
					for h := 0; side.norm != nil && h < len(x); h += c.dim {
						set.RMSNorm(x[h:h+c.dim], x[h:h+c.dim], side.norm, 1e-5)
					}
					set.RoPE(x, side.heads, c.dim, cos[i*half:][:half], sin[i*half:][:half], c.interleaved)
				}
				set.KVStore(&kv, i, wantK[i*c.kv*c.dim:][:c.kv*c.dim], v[i*c.kv*c.dim:][:c.kv*c.dim])
			}
			scale := float32(1 / math.Sqrt(float64(c.dim)))
			want := make([]float32, len(q))
			set.Attention(want, c.heads*c.dim, wantQ, c.heads*c.dim, &kv, kernels.Query{N: tokens, Heads: c.heads, Scale: scale}, 0, c.heads,
				make([]byte, kernels.AttentionScratch(c.dim)))

			compute(t, func(th *cuda.Thread, o *cuda.Ops) {
				cache := cuda.Cache{Slab: put(t, th, make([]byte, len(kv.Slab))), PageBytes: int64(kv.PageBytes), LayerOffset: int64(layer), KVHeads: int32(c.kv), HeadDim: int32(c.dim)}
				if c.kind == kernels.KVI8 {
					cache.Int8 = 1
				}
				rot := &cuda.Rotation{
					Q: put(t, th, q), K: put(t, th, k), V: put(t, th, v), Cosine: put(t, th, cos), Sine: put(t, th, sin),
					Positions: put(t, th, pos), Pages: put(t, th, pages), Cache: cache, Heads: int32(c.heads), Half: int32(half), Eps: 1e-5,
				}
				if c.norms {
					rot.QNorm, rot.KNorm = put(t, th, qNorm), put(t, th, kNorm)
				}
				if c.interleaved {
					rot.Interleaved = 1
				}
				require.NoError(t, o.Rotate(rot, tokens))
				require.Equal(t, bits(wantQ), bits(get[float32](t, th, rot.Q, len(q))))
				require.Equal(t, bits(wantK), bits(get[float32](t, th, rot.K, len(k))))
				require.Equal(t, kv.Slab, get[byte](t, th, cache.Slab, len(kv.Slab)))

				which := []int32{0, 1, 63, 64, 100, 127, 128, 149}
				a := &cuda.Attend{
					Dst: put(t, th, make([]float32, len(which)*c.heads*c.dim)), Q: rot.Q, Tokens: put(t, th, which), Positions: put(t, th, which),
					FirstPage: put(t, th, make([]int32, len(which))), Pages: put(t, th, kv.Pages), Cache: cache, Heads: int32(c.heads), Scale: scale,
				}
				require.NoError(t, o.Attention(a, len(which)))
				got := get[float32](t, th, a.Dst, len(which)*c.heads*c.dim)
				for i, token := range which {
					n := c.heads * c.dim
					require.Equal(t, bits(want[int(token)*n:][:n]), bits(got[i*n:][:n]), "position %d", token)
				}
			})
		})
	}
}

func TestGatherAndNorm(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 15, 16)
	x, weight := vector(r, 4*300), vector(r, 300)
	compute(t, func(th *cuda.Thread, o *cuda.Ops) {
		src, dst := put(t, th, x), put(t, th, make([]float32, 2*300))
		require.NoError(t, o.Gather(dst, src, put(t, th, []int32{3, 1}), 2, 300))
		got := get[float32](t, th, dst, 600)
		require.Equal(t, x[900:], got[:300])
		require.Equal(t, x[300:600], got[300:])
		require.NoError(t, o.Norm(dst, src, put(t, th, weight), 1e-6, 2, 300))
		want := make([]float32, 300)
		set.RMSNorm(want, x[300:600], weight, 1e-6)
		require.Equal(t, bits(want), bits(get[float32](t, th, dst, 600)[300:]))
	})
}
