//go:build cgo

package cuda_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// decode runs f with the kernels on a device of its own.
func decode(t *testing.T, f func(*cuda.Thread, *cuda.Ops, *cuda.Decode)) {
	t.Helper()
	computeWith(t, (*cuda.Thread).Decode, f)
}

// Attention of one token of each sequence gives the bits of the kernels for many, and leaves the same
// caches: over many pages, grouped heads, heads whose vectors are not aligned.
func TestDecodeAttendGivesTheBitsOfAttention(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 21, 22)
	for _, c := range []struct {
		heads, kv, dim, int8, interleaved int
		norm                              bool
		positions                         []int32
	}{
		{4, 2, 16, 0, 0, true, []int32{0, 63, 64, 1100}},
		{2, 1, 32, 1, 1, false, []int32{5, 130, 1023}},
		{2, 2, 24, 0, 1, true, []int32{70}}, {2, 1, 24, 1, 0, true, []int32{191}},
	} {
		decode(t, func(th *cuda.Thread, o *cuda.Ops, d *cuda.Decode) {
			n, q, kv := len(c.positions), c.heads*c.dim, c.kv*c.dim
			headBytes := 4 * kernels.PageLen * c.dim
			if c.int8 == 1 {
				headBytes = 2*kernels.PageLen*c.dim + 8*kernels.PageLen
			}
			pages, first, list := make([]int32, n), make([]int32, n), []int32{}
			for i, p := range c.positions {
				first[i] = int32(len(list))
				for range p/kernels.PageLen + 1 {
					list = append(list, int32(len(list)))
				}
				pages[i] = list[len(list)-1]
			}
			for i := range list { // the pages of a sequence lie anywhere
				list[i] = (list[i] + 3) % int32(len(list))
			}
			for i := range pages {
				pages[i] = (pages[i] + 3) % int32(len(list))
			}
			layer := headBytes * c.kv
			old := make([]byte, 2*layer*len(list))
			for p := range len(list) { // what is behind the layer stays as it is
				at := old[2*layer*p : 2*layer*p+layer]
				for h := range c.kv {
					head := at[h*headBytes : (h+1)*headBytes]
					for i := range head {
						head[i] = byte(r.IntN(256))
					}
					if c.int8 == 0 { // numbers near 1
						for i := 1; i < len(head); i += 2 {
							head[i] = head[i]&0x80 | 0x3c
						}
						continue
					}
					for i := 2 * kernels.PageLen * c.dim; i < len(head); i += 4 {
						copy(head[i:], []byte{0, byte(r.IntN(256)), 0x80, 0x3c})
					}
				}
			}
			qkv := vector(r, n*(q+2*kv))
			part := func(from, width int) []float32 {
				x := make([]float32, 0, n*width)
				for i := range n {
					x = append(x, qkv[i*(q+2*kv)+from:][:width]...)
				}
				return x
			}
			half, most := c.dim/2, 2048
			norm := cuda.Ptr(0)
			if c.norm {
				norm = put(t, th, vector(r, c.dim))
			}
			cosine, sine, positions := put(t, th, vector(r, most*half)), put(t, th, vector(r, most*half)), put(t, th, c.positions)
			firstPage, all := put(t, th, first), put(t, th, list)
			attend := func(slab cuda.Ptr) cuda.Cache {
				return cuda.Cache{Slab: slab, PageBytes: int64(2 * layer), KVHeads: int32(c.kv), HeadDim: int32(c.dim), Int8: int32(c.int8)}
			}
			slab, other := put(t, th, old), put(t, th, old)
			tokens := make([]int32, n)
			for i := range tokens {
				tokens[i] = int32(i)
			}
			want, got := put(t, th, make([]float32, n*q)), put(t, th, make([]float32, n*q))
			dq := put(t, th, part(0, q))
			require.NoError(t, o.Rotate(&cuda.Rotation{
				Q: dq, K: put(t, th, part(q, kv)), V: put(t, th, part(q+kv, kv)), QNorm: norm, KNorm: norm, Cosine: cosine, Sine: sine,
				Positions: positions, Pages: put(t, th, pages), Cache: attend(slab), Heads: int32(c.heads), Half: int32(half), Interleaved: int32(c.interleaved), Eps: 1e-5,
			}, n))
			require.NoError(t, o.Attention(&cuda.Attend{
				Dst: want, Q: dq, Tokens: put(t, th, tokens), Positions: positions, FirstPage: firstPage, Pages: all, Cache: attend(slab), Heads: int32(c.heads), Scale: 0.25,
			}, n))
			a := &cuda.DecodeAttend{
				Scores: put(t, th, make([]float32, n*c.heads*most)), Dst: got, QKV: put(t, th, qkv), QNorm: norm, KNorm: norm, Cosine: cosine, Sine: sine,
				Positions: positions, FirstPage: firstPage, Pages: all, Cache: attend(other), LD: int32(q + 2*kv), Heads: int32(c.heads), Half: int32(half),
				Interleaved: int32(c.interleaved), Room: int32(most), Eps: 1e-5, Scale: 0.25,
			}
			require.NoError(t, d.Attend(a, n))
			require.Equal(t, get[byte](t, th, slab, len(old)), get[byte](t, th, other, len(old)), "the caches, %+v", c)
			require.Equal(t, bits(get[float32](t, th, want, n*q)), bits(get[float32](t, th, got, n*q)), "%+v", c)
			a.Room = 100
			require.ErrorContains(t, d.Attend(a, n), "cuda: attention")
		})
	}
}

func TestDecodeShapesThatDoNotFit(t *testing.T) {
	decode(t, func(th *cuda.Thread, _ *cuda.Ops, d *cuda.Decode) {
		a, err := th.NewAct(2, 256, 128)
		require.NoError(t, err)
		for _, err := range []error{
			d.MixQuantize(&a, cuda.Mix{U: 8}, cuda.Normed{}, 3, 1, 256), d.MixQuantize(&a, cuda.Mix{U: 8}, cuda.Normed{}, 2, 1, 128),
			d.MixQuantize(&a, cuda.Mix{}, cuda.Normed{}, 2, 1, 256), d.MixQuantize(&a, cuda.Mix{U: 8, Mean: 8}, cuda.Normed{}, 2, 1, 256),
			d.MixQuantize(&a, cuda.Mix{U: 8}, cuda.Normed{}, 2, 3, 256), d.ActivateQuantize(&a, 8, 8, 256, cuda.ReLU2, cuda.Normed{}, 0),
		} {
			require.ErrorContains(t, err, "cuda: ")
		}
	})
}
