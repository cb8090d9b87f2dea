//go:build cgo

package cuda_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// rotaryCase is a shape of queries, keys and values; half is the number of pairs that turn.
type rotaryCase struct {
	heads, kv, dim, half int
	norms, interleaved   bool
}

func TestRotateInTraining(t *testing.T) {
	set := reference(t)
	for _, c := range []rotaryCase{
		{4, 2, 64, 32, true, false}, {3, 1, 48, 24, false, false}, {3, 1, 16, 8, true, false}, {2, 2, 128, 64, true, false}, {5, 5, 80, 20, true, true}, {1, 1, 112, 33, false, false},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			r := cudatest.Rand(os.Getenv, 41, uint64(c.dim))
			const rows, seq, dim = 3, 13, 48
			const n = rows * seq
			q, kv := c.heads*c.dim, c.kv*c.dim
			width := q + 2*kv
			cos, sin := make([]float32, seq*c.half), make([]float32, seq*c.half)
			kernels.RoPETable(cos, sin, seq, 2*c.half, 10000, 1, nil)
			v := vector(r, n*width)
			qNorm, kNorm := vector(r, c.dim), vector(r, c.dim)
			starts := make([]int32, n)
			for i := range n {
				if at := i % seq; at > 0 {
					starts[i] = starts[i-1]
					if r.IntN(4) == 0 {
						starts[i] = int32(at)
					}
				}
			}
			at := func(i int) ([]float32, []float32) {
				p := i%seq - int(starts[i])
				return cos[p*c.half:][:c.half], sin[p*c.half:][:c.half]
			}
			training(t, 1, func(th *cuda.Thread, x *cuda.Train) {
				docs := cuda.Docs{Starts: put(t, th, starts), Rows: rows, SeqLen: seq}
				rot := cuda.TrainRotation{
					X: put(t, th, v), Cosine: put(t, th, cos), Sine: put(t, th, sin), Heads: c.heads, KVHeads: c.kv, HeadDim: c.dim, Half: c.half,
					Interleaved: c.interleaved, Eps: 1e-5,
				}
				if c.norms {
					rot.QNorm, rot.KNorm = put(t, th, qNorm), put(t, th, kNorm)
				}
				y := areaOf[uint16](t, th, n*width)
				require.NoError(t, x.Rotate(y.at, &rot, docs))
				got := y.read(t)
				for i := range n {
					row := append([]float32{}, v[i*width:][:width]...)
					turned := row[:q+kv]
					for h := 0; c.norms && h < q+kv; h += c.dim {
						weight := qNorm
						if h >= q {
							weight = kNorm
						}
						set.RMSNorm(turned[h:h+c.dim], turned[h:h+c.dim], weight, 1e-5)
					}
					cosine, sine := at(i)
					set.RoPE(turned, c.heads+c.kv, c.dim, cosine, sine, c.interleaved)
					want := make([]uint16, width)
					for j, w := range row {
						want[j] = kernels.F32ToF16(w)
					}
					require.Equal(t, want, got[i*width:][:width], "token %d", i)
				}

				dq, dk, dv := vector(r, n*q), vector(r, n*kv), vector(r, n*kv)
				in := inputsOf(t, th, r, n, dim)
				dyb := areaOf[uint16](t, th, n*width)
				parts := [2]*partial{partialOf(t, th, x, r, n, 2*c.dim, c.dim), partialOf(t, th, x, r, n, 2*c.dim, c.dim)}
				back := &cuda.RotateBack{
					TrainRotation: rot, DQ: put(t, th, dq), DK: put(t, th, dk), DV: put(t, th, dv), DYB: dyb.at, Input: in.factor(), Partial: parts[0].scratch,
				}
				if c.kv == 1 { // as attention may leave them
					back.HalfD = true
					for p, d := range map[*cuda.Ptr][]float32{&back.DQ: dq, &back.DK: dk, &back.DV: dv} {
						half := halves(set, 1, d)
						*p = put(t, th, half)
						for i, h := range half {
							d[i] = kernels.BF16ToF32(h)
						}
					}
				}
				qSum, kSum, err := x.RotateBack(back, docs)
				require.NoError(t, err)
				in.check(t, set)
				got = dyb.read(t)
				var dNorm [2][]float32
				dNorm[0], dNorm[1] = make([]float32, c.dim), make([]float32, c.dim)
				for i := range n {
					row := append(append(append([]float32{}, dq[i*q:][:q]...), dk[i*kv:][:kv]...), dv[i*kv:][:kv]...)
					turned, was := row[:q+kv], v[i*width:][:width]
					cosine, sine := at(i)
					set.RoPEBackward(turned, c.heads+c.kv, c.dim, cosine, sine, c.interleaved)
					for h := 0; c.norms && h < q+kv; h += c.dim {
						weight, d := qNorm, dNorm[0]
						if h >= q {
							weight, d = kNorm, dNorm[1]
						}
						set.RMSNormBackward(turned[h:h+c.dim], d, turned[h:h+c.dim], was[h:h+c.dim], weight, 1e-5)
					}
					if !c.norms {
						require.Equal(t, halves(set, in.gain(i), row), got[i*width:][:width], "token %d", i)
						continue
					}
					set.Scale(row, in.gain(i), row)
					nearBF16(t, row, got[i*width:][:width], 1e-5, "token %d", i)
				}
				if c.norms {
					parts[0].check(t, x, qSum, dNorm[0], "the norm of queries")
					parts[1].check(t, x, kSum, dNorm[1], "the norm of keys")
				} else {
					require.Equal(t, cuda.PartialSum{}, qSum)
				}
				rot.HeadDim = 136
				require.ErrorContains(t, x.Rotate(y.at, &rot, docs), "multiples of 16 up to 128")
			})
		})
	}
}
