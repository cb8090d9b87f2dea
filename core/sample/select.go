package sample

import (
	"math"
	"math/bits"

	"github.com/architehc/nanochat/kernels"
)

// Workspace holds the buffers of Sample. Samplers of the same vocabulary may
// share one if they do not sample at the same time.
type Workspace struct {
	set   *kernels.Set
	vocab int
	p     []float32 // scaled logits, then probabilities [vocab]
	q     []float32 // probabilities of the candidates in ids [vocab]
	ids   []int32   // candidates, ascending or best first [vocab]
	bins  [1 << digit]bin
}

type bin struct {
	count int
	mass  float64
}

// NewWorkspace returns buffers for a vocabulary, 12 bytes per token. All sets
// choose the same tokens.
func NewWorkspace(vocab int, set *kernels.Set) *Workspace {
	n := max(vocab, 0)
	return &Workspace{set: set, vocab: n, p: make([]float32, n),
		q: make([]float32, n), ids: make([]int32, n)}
}

// drawWide draws from the probabilities ws.p, whose largest is that of best.
func (ws *Workspace) drawWide(o Options, best int, unit float64) int32 {
	p := ws.p
	cut := float64(o.MinP * float64(p[best]))
	topK := o.TopK > 0 && o.TopK < ws.vocab
	topP := o.TopP > 0 && o.TopP < 1
	if !topK && !topP {
		if cut == 0 {
			return int32(ws.drawAll(unit))
		}
		n, mass := ws.gather(cut)
		return ws.ids[walk(ws.q[:n], float64(unit*mass))]
	}
	// Tokens below (1-TopP)/vocab together hold less than 1-TopP: the shortest
	// beginning that reaches TopP has none of them. Half of that leaves room for
	// the rounding of the sums. TopK counts all, so it looks at all.
	low, total := 0.0, 0.0
	if !topK {
		low = max(cut, 0.5*(1-o.TopP)/float64(ws.vocab))
		total = sum(p)
	}
	n, mass := ws.gather(low)
	if topK {
		n, mass = ws.trim(n, ws.findEdge(n, o.TopK, math.Inf(1)))
		total = mass
	}
	if topP {
		// MinP may have removed more than TopP would; then all of the rest stays.
		if want := float64(o.TopP * total); mass > want {
			n, mass = ws.trim(n, ws.findEdge(n, n, want))
		}
	}
	if cut > low {
		m := 0
		for i, v := range ws.q[:n] {
			if float64(v) >= cut {
				ws.q[m], ws.ids[m] = v, ws.ids[i]
				m++
			}
		}
		n, mass = m, sum(ws.q[:m])
	}
	return ws.ids[walk(ws.q[:n], float64(unit*mass))]
}

// gather writes the tokens with p ≥ low and p > 0 to ids and q, ids ascending.
func (ws *Workspace) gather(low float64) (n int, mass float64) {
	// The comparison is in float32: the smallest float32 that is ≥ low.
	l := float32(low)
	if float64(l) < low {
		l = math.Nextafter32(l, 2)
	}
	l = max(l, math.SmallestNonzeroFloat32)
	ids, q := ws.ids[:len(ws.p)], ws.q[:len(ws.p)]
	for i, v := range ws.p {
		ids[n], q[n] = int32(i), v
		if v >= l {
			n++
		}
	}
	return n, sum(q[:n])
}

// A boundary separates the beginning of the order (p descending, id ascending)
// from the rest: everything above key, and the first ties of those equal to it.
type boundary struct {
	key  uint32
	ties int
}

// digit is the number of bits of a key that one pass of findEdge looks at.
const digit = 11

// findEdge finds the boundary of the shortest beginning of the n ≥ 1 candidates
// that has count tokens or holds mass, whichever is first. For p ≥ 0 the bits
// of a float32 order as the number does, so this is a radix select: each pass
// divides the keys that are left into bins and finds the one in which the
// beginning ends.
func (ws *Workspace) findEdge(n, count int, mass float64) boundary {
	lo, hi := math.Float32bits(ws.q[0]), math.Float32bits(ws.q[0])
	for _, v := range ws.q[:n] {
		key := math.Float32bits(v)
		lo, hi = min(lo, key), max(hi, key)
	}
	for {
		shift := max(0, bits.Len32(hi-lo)-digit)
		used := ws.bins[:(hi-lo)>>shift+1]
		clear(used)
		for _, v := range ws.q[:n] {
			if key := math.Float32bits(v) - lo; key <= hi-lo {
				b := &used[key>>shift]
				b.count++
				b.mass += float64(v)
			}
		}
		i, lowest := len(used)-1, 0
		for ; i >= 0; i-- {
			b := &used[i]
			if b.count == 0 {
				continue
			}
			lowest = i
			if b.count >= count || b.mass >= mass {
				break
			}
			count -= b.count
			mass -= b.mass
		}
		if i < 0 { // rounding left less mass in the bins than was asked for: all of them
			i = lowest
			count, mass = used[i].count, math.Inf(1)
		}
		lo += uint32(i) << shift
		if shift == 0 { // all in this bin are equal
			ties := count
			if need := math.Ceil(mass / float64(math.Float32frombits(lo))); need < float64(ties) {
				ties = max(int(need), 1)
			}
			return boundary{lo, ties}
		}
		hi = min(hi, lo+1<<shift-1)
	}
}

// trim keeps the candidates inside the boundary.
func (ws *Workspace) trim(n int, e boundary) (kept int, mass float64) {
	for i, v := range ws.q[:n] {
		key := math.Float32bits(v)
		if key < e.key {
			continue
		}
		if key == e.key {
			if e.ties == 0 {
				continue
			}
			e.ties--
		}
		ws.q[kept], ws.ids[kept] = v, ws.ids[i]
		kept++
	}
	return kept, sum(ws.q[:kept])
}

// drawAll draws from all of ws.p: first a block of tokens, then one in it.
func (ws *Workspace) drawAll(unit float64) int {
	const block = 256
	total := 0.0
	sums := ws.bins[:0]
	for lo := 0; lo < len(ws.p); lo += block {
		s := sum(ws.p[lo:min(lo+block, len(ws.p))])
		total += s
		if len(sums) < cap(sums) {
			sums = append(sums, bin{mass: s})
		}
	}
	target := float64(unit * total)
	last := 0
	for i := range (len(ws.p) + block - 1) / block {
		lo := i * block
		part := ws.p[lo:min(lo+block, len(ws.p))]
		var s float64
		if i < len(sums) {
			s = sums[i].mass
		} else {
			s = sum(part)
		}
		if s > 0 {
			last = i
			if target < s {
				return lo + walk(part, target)
			}
		}
		target -= s
	}
	// Rounding used up the total: the last token that can be drawn.
	lo := last * block
	return lo + walk(ws.p[lo:min(lo+block, len(ws.p))], math.Inf(1))
}

// walk returns the first i with q[0]+…+q[i] > target, or the last i with q[i] > 0.
// It never returns an i with q[i] = 0 unless all are.
func walk(q []float32, target float64) int {
	acc, last := 0.0, 0
	for i, v := range q {
		if v > 0 {
			last = i
			acc += float64(v)
			if acc > target {
				break
			}
		}
	}
	return last
}

// sum adds in four strided partial sums: the order is fixed, the additions overlap.
func sum(x []float32) float64 {
	var a, b, c, d float64
	i := 0
	for ; i+4 <= len(x); i += 4 {
		y := x[i : i+4 : i+4]
		a += float64(y[0])
		b += float64(y[1])
		c += float64(y[2])
		d += float64(y[3])
	}
	for _, v := range x[i:] {
		a += float64(v)
	}
	return (a + b) + (c + d)
}
