//go:build cgo

package cuda_test

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

func TestAddPartials(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 51, 52)
	training(t, 0, func(th *cuda.Thread, x *cuda.Train) {
		type job struct {
			dst  area[float32]
			want []float32
		}
		var jobs []job
		var sums []cuda.PartialSum
		for i := range 70 {
			rows, width := 1+i*3%75, 1+i*7%101
			stride := width + i%5
			src, dst := vector(r, rows*stride), vector(r, width)
			j := job{filled(t, th, dst), slices.Clone(dst)}
			for c := range width {
				lines, s := [32]float64{}, float64(dst[c])
				for k := range rows {
					lines[k%32] += float64(src[k*stride+c])
				}
				for _, v := range lines {
					s += v
				}
				j.want[c] = float32(s)
			}
			jobs = append(jobs, j)
			sums = append(sums, cuda.NewPartialSum(j.dst.at, put(t, th, src), rows, width, stride), cuda.PartialSum{}, cuda.NewPartialSum(0, 1, 1, 1, 1))
		}
		require.NoError(t, x.AddPartials(sums...))
		for i, j := range jobs {
			require.Equal(t, bits(j.want), bits(j.dst.read(t)), "sum %d", i)
		}
		require.NoError(t, x.AddPartials())
	})
}

func TestEmbedBack(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 53, 54)
	for _, c := range []struct {
		n, dim, streams, vocab int
		dembed                 bool
	}{{1, 16, 1, 3, false}, {200, 48, 1, 9, false}, {300, 48, 2, 40, true}, {97, 1040, 4, 500, true}, {256, 16, 1, 1, false}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			tokens := make([]int32, c.n)
			for i := range tokens { // some ids are common
				tokens[i] = int32(r.IntN(c.vocab))
				if r.IntN(3) == 0 {
					tokens[i] = int32(c.vocab / 2)
				}
			}
			order := make([]int32, c.n)
			for i := range order {
				order[i] = int32(i)
			}
			slices.SortStableFunc(order, func(a, b int32) int { return int(tokens[a] - tokens[b]) })
			ids := make([]int32, c.n)
			for i, k := range order {
				ids[i] = tokens[k]
			}
			dx, de, g := vector(r, c.n*c.streams*c.dim), vector(r, c.n*c.dim), vector(r, c.vocab*c.dim)
			training(t, 0, func(th *cuda.Thread, x *cuda.Train) {
				sum := filled(t, th, g)
				e := &cuda.EmbedBack{
					G: sum.at, DX: put(t, th, dx), Ids: put(t, th, ids), Tokens: put(t, th, order),
					Partial: areaOf[uint8](t, th, int(cuda.EmbedBackBytes(c.n, c.dim))).at, Streams: c.streams, Dim: c.dim,
				}
				if c.dembed {
					e.DEmbed = put(t, th, de)
				}
				require.NoError(t, x.EmbedBack(e, c.n))
				want := slices.Clone(g)
				for i, id := range tokens {
					row := want[int(id)*c.dim:][:c.dim]
					for s := range c.streams {
						set.Add(row, row, dx[(i*c.streams+s)*c.dim:][:c.dim])
					}
					if c.dembed {
						set.Add(row, row, de[i*c.dim:][:c.dim])
					}
				}
				near(t, want, sum.read(t), 1e-6, "gradient of the embedding")
			})
		})
	}
}
