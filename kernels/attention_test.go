package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// newKV is a cache with room for n positions, its pages scattered over a slab that
// is full of NaN, and other layers before and behind its part of a page.
func newKV(r *rand.Rand, t KVType, heads, d, n int) *KV {
	pages := (n + PageLen - 1) / PageLen
	part := heads * t.HeadBytes(d)
	kv := &KV{Type: t, Heads: heads, HeadDim: d, PageBytes: part + 192, LayerOffset: 128}
	kv.Slab = newGuarded[byte]((pages+2)*kv.PageBytes, 0).v
	for i := range kv.Slab {
		kv.Slab[i] = 0xff
	}
	for _, p := range r.Perm(pages + 2)[:pages] {
		kv.Pages = append(kv.Pages, int32(p))
	}
	return kv
}

func (kv *KV) clone() *KV {
	c := *kv
	c.Slab = newGuarded[byte](len(kv.Slab), 0).v
	copy(c.Slab, kv.Slab)
	return &c
}

// fillKV stores n positions with s.
func fillKV(s *Set, kv *KV, n int, k, v []float32) {
	w := kv.Heads * kv.HeadDim
	for p := range n {
		s.KVStore(kv, p, k[p*w:(p+1)*w], v[p*w:(p+1)*w])
	}
}

func TestKVStoreMatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(20, 20))
	ref := newGoSet()
	for _, typ := range []KVType{KVF16, KVI8} {
		for _, d := range []int{1, 6, 16, 18, 64, 80} {
			const heads, n = 3, 70
			k, v := make([]float32, n*heads*d), make([]float32, n*heads*d)
			anyFloats(r, k)
			normals(r, v)
			for i := range v { // tiny, halfway and ordinary scales
				v[i] *= []float32{1, 0x1p-140, 0x1p-24}[i/d%3]
			}
			empty := newKV(r, typ, heads, d, n)
			want := empty.clone()
			fillKV(ref, want, n, k, v)
			for _, s := range cSets() {
				got := empty.clone()
				fillKV(s, got, n, k, v)
				for i := range want.Slab {
					if want.Slab[i] != got.Slab[i] {
						t.Fatalf("%s type %d d=%d: byte %d of the slab is %#x, want %#x", s.Name, typ, d, i, got.Slab[i], want.Slab[i])
					}
				}
			}
		}
	}
}

func TestAttentionMatchesReference(t *testing.T) {
	ref := newGoSet()
	rapid.Check(t, func(rt *rapid.T) {
		typ := KVType(rapid.IntRange(0, 1).Draw(rt, "type"))
		kvHeads := rapid.IntRange(1, 3).Draw(rt, "kvHeads")
		heads := kvHeads * rapid.IntRange(1, 5).Draw(rt, "share")
		d := rapid.SampledFrom([]int{2, 8, 16, 24, 32, 64, 80, 96, 128, 144}).Draw(rt, "headDim")
		n := rapid.SampledFrom([]int{1, 2, 3, 4, 5, 7, 16, 33, 66}).Draw(rt, "queries")
		pos := rapid.IntRange(0, 150).Draw(rt, "pos")
		special := rapid.IntRange(0, 3).Draw(rt, "special") == 0
		seed := rapid.Uint64().Draw(rt, "seed")
		r := rand.New(rand.NewPCG(seed, 1))
		total := pos + n
		kv := newKV(r, typ, kvHeads, d, total)
		k, v := make([]float32, total*kvHeads*d), make([]float32, total*kvHeads*d)
		normals(r, k)
		normals(r, v)
		q := newGuarded[float32](n*heads*d, 4*r.IntN(16))
		normals(r, q.v)
		if special { // rare enough that some results stay finite
			for range 3 {
				k[r.IntN(len(k))] = anyFloat(r)
				v[r.IntN(len(v))] = anyFloat(r)
				q.v[r.IntN(len(q.v))] = anyFloat(r)
			}
		}
		fillKV(ref, kv, total, k, v)
		a := Query{Pos: pos, N: n, Heads: heads, Scale: 1 / float32(math.Sqrt(float64(d)))}
		ld := heads * d
		want := make([]float32, n*ld)
		ref.Attention(want, ld, q.v, ld, kv, a, 0, heads, make([]byte, AttentionScratch(d)))
		for _, s := range All() {
			what := fmt.Sprintf("%s type=%d heads=%d/%d d=%d n=%d pos=%d", s.Name, typ, heads, kvHeads, d, n, pos)
			got := newGuarded[float32](n*ld, 4*r.IntN(16))
			scratch := newGuarded[byte](AttentionScratch(d), r.IntN(64))
			cut := r.IntN(heads + 1)
			s.Attention(got.v, ld, q.v, ld, kv, a, 0, cut, scratch.v)
			s.Attention(got.v, ld, q.v, ld, kv, a, cut, heads, scratch.v)
			requireSame(t, want, got.v, what)
			got.check(t, what)
			scratch.check(t, what)
			if s.Name == "go" {
				continue
			}
			// One query at a time gives the same bits.
			one := newGuarded[float32](ld, 0)
			for i := range n {
				s.Attention(one.v, ld, q.v[i*ld:], ld, kv, Query{Pos: pos + i, N: 1, Heads: heads, Scale: a.Scale}, 0, heads, scratch.v)
				requireSame(t, want[i*ld:(i+1)*ld], one.v, what+" single")
			}
		}
		q.check(t, "q")
	})
}

func TestAttentionAccuracy(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 21))
	const d, n, heads = 64, 300, 2
	k, v, q := make([]float32, n*heads*d), make([]float32, n*heads*d), make([]float32, heads*d)
	normals(r, k)
	normals(r, v)
	normals(r, q)
	for _, c := range []struct {
		t   KVType
		tol float64
	}{{KVF16, 2e-6}, {KVI8, 2e-2}} {
		kv := newKV(r, c.t, heads, d, n)
		s := Best()
		for i := range k { // exact in f16, so that only attention itself is measured
			k[i], v[i] = F16ToF32(F32ToF16(k[i])), F16ToF32(F32ToF16(v[i]))
		}
		fillKV(s, kv, n, k, v)
		got := make([]float32, heads*d)
		s.Attention(got, heads*d, q, heads*d, kv, Query{Pos: n - 1, N: 1, Heads: heads, Scale: 0.125}, 0, heads, make([]byte, AttentionScratch(d)))
		for h := range heads {
			var sum float64
			want := make([]float64, d)
			for p := range n {
				var dot float64
				for i := range d {
					dot += float64(q[h*d+i]) * float64(k[(p*heads+h)*d+i])
				}
				w := math.Exp(dot * 0.125)
				sum += w
				for i := range d {
					want[i] += w * float64(v[(p*heads+h)*d+i])
				}
			}
			for i := range d {
				require.InDelta(t, want[i]/sum, float64(got[h*d+i]), c.tol)
			}
		}
	}
}

func BenchmarkAttention(b *testing.B) {
	r := rand.New(rand.NewPCG(22, 22))
	for _, c := range []struct {
		name           string
		heads, kvHeads int
		d, pos, n      int
	}{
		{"prefill512/12x64", 12, 12, 64, 0, 512},
		{"prefill512/20of5x128", 20, 5, 128, 0, 512},
		{"decode512/12x64", 12, 12, 64, 511, 1},
		{"decode4096/20of5x128", 20, 5, 128, 4095, 1},
	} {
		for _, typ := range []KVType{KVF16, KVI8} {
			total := c.pos + c.n
			kv := newKV(r, typ, c.kvHeads, c.d, total)
			w := c.kvHeads * c.d
			k := make([]float32, total*w)
			normals(r, k)
			fillKV(Best(), kv, total, k, k)
			ld := c.heads * c.d
			q, dst := make([]float32, c.n*ld), make([]float32, c.n*ld)
			normals(r, q)
			scratch := make([]byte, AttentionScratch(c.d))
			var macs float64
			for i := range c.n {
				macs += float64(2*c.heads*c.d) * float64(c.pos+i+1)
			}
			for _, s := range cSets() {
				b.Run(fmt.Sprintf("%s/%s/%s", c.name, []string{"f16", "i8"}[typ], s.Name), func(b *testing.B) {
					b.SetBytes(int64(len(kv.Pages) * c.kvHeads * typ.HeadBytes(c.d)))
					for b.Loop() {
						s.Attention(dst, ld, q, ld, kv, Query{Pos: c.pos, N: c.n, Heads: c.heads, Scale: 0.125}, 0, c.heads, scratch)
					}
					b.ReportMetric(2*macs*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
				})
			}
		}
	}
}
