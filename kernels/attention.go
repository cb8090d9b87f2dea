package kernels

import (
	"encoding/binary"
	"fmt"
	"math"
)

// attentionRows is the number of (query, head) pairs that go through a page together.
const attentionRows = 64

// AttentionScratch is the size in bytes of Attention's scratch: the keys and
// values of one head of a page and a block of queries in f32, the scores of one with
// the other, and 64 bytes to align them.
func AttentionScratch(headDim int) int {
	d := (headDim + 15) &^ 15
	return 4*((2*PageLen+attentionRows)*d+attentionRows*PageLen) + 64
}

func checkKV(kv *KV) {
	if kv.Type > KVI8 || kv.Heads <= 0 || kv.HeadDim <= 0 || kv.LayerOffset < 0 ||
		kv.LayerOffset+kv.Heads*kv.Type.HeadBytes(kv.HeadDim) > kv.PageBytes {
		panic(fmt.Sprintf("kernels: KV cache of type %d, %d heads of %d, at %d of pages of %d bytes", kv.Type, kv.Heads, kv.HeadDim, kv.LayerOffset, kv.PageBytes))
	}
}

// checkPages panics unless the pages of positions p0 ≤ p < p1 lie in the slab.
func checkPages(kv *KV, p0, p1 int) {
	if p0 < 0 || p1 > len(kv.Pages)*PageLen {
		panic(fmt.Sprintf("kernels: positions %d to %d of a KV cache of %d pages", p0, p1, len(kv.Pages)))
	}
	for p := p0 / PageLen; p*PageLen < p1; p++ {
		if g := int(kv.Pages[p]); g < 0 || (g+1)*kv.PageBytes > len(kv.Slab) {
			panic(fmt.Sprintf("kernels: page %d of a slab of %d", g, len(kv.Slab)/kv.PageBytes))
		}
	}
}

func checkKVStore(kv *KV, pos int, k, v []float32) {
	checkKV(kv)
	checkPages(kv, pos, pos+1)
	checkLen("k", len(k), kv.Heads*kv.HeadDim)
	checkLen("v", len(v), kv.Heads*kv.HeadDim)
}

func checkAttention(dst []float32, ldd int, q []float32, ldq int, kv *KV, a *Query, h0, h1 int, scratch []byte) {
	checkKV(kv)
	if a.N < 0 || a.Heads <= 0 || a.Heads%kv.Heads != 0 || h0 < 0 || h0 > h1 || h1 > a.Heads || ldd < h1*kv.HeadDim || ldq < h1*kv.HeadDim {
		panic(fmt.Sprintf("kernels: Attention of %d queries (strides %d, %d), heads %d to %d of %d over %d of %d", a.N, ldd, ldq, h0, h1, a.Heads, kv.Heads, kv.HeadDim))
	}
	if a.N == 0 {
		return
	}
	if a.Pos < 0 {
		panic(fmt.Sprintf("kernels: Attention at position %d", a.Pos))
	}
	checkPages(kv, 0, a.Pos+a.N)
	checkLen("dst", len(dst), (a.N-1)*ldd+h1*kv.HeadDim)
	checkLen("q", len(q), (a.N-1)*ldq+h1*kv.HeadDim)
	checkLen("scratch", len(scratch), AttentionScratch(kv.HeadDim))
}

// head is the part of KV head h in the page of position p: keys, values and, for
// KVI8, their scales.
func (kv *KV) head(p, h int) (k, v, ks, vs []byte) {
	hb := kv.Type.HeadBytes(kv.HeadDim)
	b := kv.Slab[int(kv.Pages[p/PageLen])*kv.PageBytes+kv.LayerOffset+h*hb:][:hb]
	n := PageLen * kv.HeadDim
	if kv.Type == KVF16 {
		return b[:2*n], b[2*n:], nil, nil
	}
	return b[:n], b[n : 2*n], b[2*n : 2*n+4*PageLen], b[2*n+4*PageLen:]
}

// goKVStore rounds to half, or quantises as Quantize does: a = max|x|/127,
// q = roundHalfToEven(x/a) kept within ±127, zeros if a is zero. If a is not finite
// the values are zeros and the scale is NaN, so that attention gives NaN.
func goKVStore(kv *KV, pos int, k, v []float32) {
	checkKVStore(kv, pos, k, v)
	d, i := kv.HeadDim, pos%PageLen
	for h := range kv.Heads {
		kb, vb, ks, vs := kv.head(pos, h)
		for _, side := range []struct {
			dst, scale []byte
			src        []float32
		}{{kb, ks, k}, {vb, vs, v}} {
			src := side.src[h*d : (h+1)*d]
			if kv.Type == KVF16 {
				for j, x := range src {
					binary.LittleEndian.PutUint16(side.dst[2*(i*d+j):], F32ToF16(x))
				}
				continue
			}
			a := quantizeKV(side.dst[i*d:(i+1)*d], src)
			binary.LittleEndian.PutUint32(side.scale[4*i:], math.Float32bits(a))
		}
	}
}

func quantizeKV(dst []byte, x []float32) float32 {
	var m uint32
	for _, v := range x {
		m = max(m, math.Float32bits(v)&0x7fffffff)
	}
	a := math.Float32frombits(m) / 127
	finite := m < 0x7f800000
	for i, v := range x {
		dst[i] = 0
		if finite && a > 0 {
			n := float32(math.RoundToEven(float64(v / a)))
			dst[i] = byte(int8(min(max(n, -127), 127)))
		}
	}
	if !finite {
		return math.Float32frombits(0x7fc00000)
	}
	return a
}

// goAttention goes page by page from position 0. For one query and head, with the
// positions t of a page that the query sees:
//
//	s[t] = canonical sum of q·k[t], times k's scale (KVI8), times Scale
//	m'   = max(m, maxOf(s)); c = exp(m-m'); p[t] = exp(s[t]-m')
//	l    = fma(l, c, canonical sum of p)
//	o    = o·c, then o = fma(p[t], v[t], o) over ascending t (KVI8: p[t]·scale of v)
//
// from m = -Inf, l = 0, o = 0. The result is o·(1/l).
func goAttention(dst []float32, ldd int, q []float32, ldq int, kv *KV, a Query, h0, h1 int, scratch []byte) {
	checkAttention(dst, ldd, q, ldq, kv, &a, h0, h1, scratch)
	d := kv.HeadDim
	for i := range a.N {
		for h := h0; h < h1; h++ {
			attendOne(dst[i*ldd+h*d:][:d], q[i*ldq+h*d:][:d], kv, h/(a.Heads/kv.Heads), a.Pos+i+1, a.Scale)
		}
	}
}

// attendOne is one query over the first n positions of KV head g.
func attendOne(o, q []float32, kv *KV, g, n int, scale float32) {
	d := kv.HeadDim
	t := F16
	if kv.Type == KVI8 {
		t = int8Element
	}
	m, l := negInf(), float32(0)
	clear(o)
	var p [PageLen]float32
	for p0 := 0; p0 < n; p0 += PageLen {
		k, v, ks, vs := kv.head(p0, g)
		p := p[:min(PageLen, n-p0)]
		for j := range p {
			var s lanes
			for i, x := range q {
				s[i&15] = FMA32(x, kvElement(t, k, j*d+i), s[i&15])
			}
			s.pad(d)
			p[j] = s.sum()
			if ks != nil {
				p[j] *= element(F32, ks, j)
			}
			p[j] *= scale
		}
		m1 := maxOf(p)
		if !(m1 > m) {
			m1 = m
		}
		c := exp32(m - m1)
		m = m1
		var s lanes
		for j := range p {
			p[j] = exp32(p[j] - m)
			s[j&15] += p[j]
		}
		l = FMA32(l, c, s.sum())
		for i := range o {
			o[i] *= c
		}
		for j, w := range p {
			if vs != nil {
				w *= element(F32, vs, j)
			}
			for i := range o {
				o[i] = FMA32(w, kvElement(t, v, j*d+i), o[i])
			}
		}
	}
	inv := 1 / l
	for i := range o {
		o[i] *= inv
	}
}

// int8Element selects int8 in kvElement; DType has no such member.
const int8Element DType = 24

func kvElement(t DType, b []byte, i int) float32 {
	if t == int8Element {
		return float32(int8(b[i]))
	}
	return F16ToF32(binary.LittleEndian.Uint16(b[2*i:]))
}
