package model

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
)

// densify makes m's projections and head float32, so that no rounding of
// activations to int8 hides a small difference or enlarges it.
func densify(t *testing.T, m *Model) {
	t.Helper()
	for i := range m.layers {
		for _, p := range m.layers[i].projections() {
			if w := p.ternary; w != nil {
				values := make([]float32, w.Rows*w.Cols)
				require.NoError(t, ternary.Dequantize(values, w))
				*p = linear{dense: &kernels.Dense{Rows: w.Rows, Cols: w.Cols, Type: kernels.F32, Data: gguf.Bytes(values)}}
			}
		}
	}
	values := make([]float32, m.head.Rows*m.head.Cols)
	for r := range m.head.Rows {
		m.set.DenseRow(row(values, r, m.head.Cols), &m.head, r)
	}
	m.head = kernels.Dense{Rows: m.head.Rows, Cols: m.head.Cols, Type: kernels.F32, Data: gguf.Bytes(values)}
}

// reference computes the logits of a plain, dense SwiGLU model in float64, one
// token after the other, from the definition of package model.
func reference(t *testing.T, m *Model, ids []int32) [][]float32 {
	t.Helper()
	c := m.cfg
	norm := func(x []float64, w []float32) []float64 {
		s := 0.0
		for _, v := range x {
			s += v * v
		}
		r := math.Sqrt(s/float64(len(x)) + c.NormEps)
		out := make([]float64, len(x))
		for i, v := range x {
			out[i] = v / r * float64(w[i])
		}
		return out
	}
	apply := func(l *linear, x []float64) []float64 {
		row, out := make([]float32, l.dense.Cols), make([]float64, l.dense.Rows)
		for r := range out {
			require.NoError(t, denseRow(row, l.dense, r))
			for k, v := range row {
				out[r] += float64(v) * x[k]
			}
		}
		return out
	}
	half := func(v float64) float64 { return float64(kernels.F16ToF32(kernels.F32ToF16(float32(v)))) }
	rotate := func(x []float64, pos int) {
		for h := 0; h < len(x); h += c.HeadDim {
			for i := range c.HeadDim / 2 {
				sin, cos := math.Sincos(float64(pos) * math.Pow(c.RopeTheta, -2*float64(i)/float64(c.HeadDim)))
				a, b := x[h+i], x[h+i+c.HeadDim/2]
				x[h+i], x[h+i+c.HeadDim/2] = a*cos-b*sin, a*sin+b*cos
			}
		}
	}
	keys, values := make([][][]float64, c.Layers), make([][][]float64, c.Layers)
	var logits [][]float32
	row := make([]float32, c.Dim)
	for pos, id := range ids {
		require.NoError(t, denseRow(row, &m.embed, int(id)))
		x := make([]float64, c.Dim)
		for i, v := range row {
			x[i] = float64(v)
		}
		for i := range m.layers {
			l := &m.layers[i]
			h := norm(x, l.attnNorm)
			q, k, v := apply(&l.q, h), apply(&l.k, h), apply(&l.v, h)
			rotate(q, pos)
			rotate(k, pos)
			for j := range k {
				k[j], v[j] = half(k[j]), half(v[j])
			}
			keys[i], values[i] = append(keys[i], k), append(values[i], v)
			att := make([]float64, len(q))
			for head := range c.Heads {
				kv := head / (c.Heads / c.KVHeads)
				p, sum := make([]float64, pos+1), 0.0
				for s := range p {
					for d := range c.HeadDim {
						p[s] += q[head*c.HeadDim+d] * keys[i][s][kv*c.HeadDim+d]
					}
					p[s] = math.Exp(p[s] / math.Sqrt(float64(c.HeadDim)))
					sum += p[s]
				}
				for s := range p {
					for d := range c.HeadDim {
						att[head*c.HeadDim+d] += p[s] / sum * values[i][s][kv*c.HeadDim+d]
					}
				}
			}
			for j, v := range apply(&l.o, att) {
				x[j] += v
			}
			h = norm(x, l.ffnNorm)
			gate, up := apply(&l.gate, h), apply(&l.up, h)
			for j, g := range gate {
				up[j] *= g / (1 + math.Exp(-g))
			}
			for j, v := range apply(&l.down, up) {
				x[j] += v
			}
		}
		f := norm(x, m.norm)
		z := make([]float32, c.Vocab)
		head := make([]float32, c.Dim)
		for r := range z {
			require.NoError(t, denseRow(head, &m.head, r))
			s := 0.0
			for k, v := range head {
				s += float64(v) * f[k]
			}
			z[r] = float32(s)
		}
		logits = append(logits, z)
	}
	return logits
}
