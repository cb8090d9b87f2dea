package data

import (
	"math/bits"

	"github.com/architehc/nanochat/core/internal/rng"
)

// Streams of random numbers, one for each purpose; the low 56 bits are the epoch
// or the row.
const (
	docStream = (iota + 1) << 56
	rowStream
	fimStream
)

// A permutation is a one-to-one map of 0..n-1 to itself that needs no table: a
// Feistel network over the smallest even number of bits that holds n-1, applied
// until the result is below n.
type permutation struct {
	n    uint64
	half uint
	keys [6]uint64
}

func newPermutation(n uint64, seed, stream uint64) permutation {
	p := permutation{n: n, half: uint(bits.Len64(max(n, 2)-1)+1) / 2}
	r := rng.New(seed, stream)
	for i := range p.keys {
		p.keys[i] = r.Uint64()
	}
	return p
}

func (p *permutation) at(i uint64) uint64 {
	mask := uint64(1)<<p.half - 1
	for {
		l, r := i>>p.half, i&mask
		for _, k := range p.keys {
			l, r = r, l^mix(r^k)&mask
		}
		if i = l<<p.half | r; i < p.n {
			return i
		}
	}
}

// mix is the finaliser of MurmurHash3 (Appleby): every bit of the result depends
// on every bit of x.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// An epochPlan is the stream of one epoch: the order of the documents and where
// each ends.
type epochPlan struct {
	epoch uint64
	order []uint32 // document at each place; nil: as stored
	ends  []int64  // place of the token after the document at each place
	rows  permutation
}

// planEpoch makes the plan of an epoch. extra is the number of tokens put around
// each document.
func (d *Dataset) planEpoch(seed, epoch uint64, ordered bool, rows uint64, extra int) *epochPlan {
	n := d.Docs()
	p := &epochPlan{epoch: epoch, ends: make([]int64, n), rows: newPermutation(rows, seed, rowStream|epoch)}
	if !ordered {
		p.order = make([]uint32, n)
		for i := range p.order {
			p.order[i] = uint32(i)
		}
		r := rng.New(seed, docStream|epoch)
		for i := n - 1; i > 0; i-- {
			j := r.IntN(i + 1)
			p.order[i], p.order[j] = p.order[j], p.order[i]
		}
	}
	end := int64(0)
	for k := range n {
		_, lo, hi := d.doc(p.doc(k))
		end += int64(hi - lo + extra)
		p.ends[k] = end
	}
	return p
}

// doc is the document at place k.
func (p *epochPlan) doc(k int) int {
	if p.order == nil {
		return k
	}
	return int(p.order[k])
}

// find returns the place of the document that holds token at of the stream.
func (p *epochPlan) find(at int64) int {
	lo, hi := 0, len(p.ends)
	for lo < hi {
		if mid := int(uint(lo+hi) / 2); p.ends[mid] <= at {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// start is the place in the stream where the document at place k begins.
func (p *epochPlan) start(k int) int64 {
	if k == 0 {
		return 0
	}
	return p.ends[k-1]
}
