package data

import (
	"crypto/sha256"

	"github.com/architehc/nanochat/core/internal/rng"
)

// DedupOptions says which documents count as copies of earlier ones.
type DedupOptions struct {
	// Off keeps copies, exact ones too.
	Off bool `json:"off"`
	// Near is the estimated Jaccard similarity of the shingles of two documents
	// from which the later is left out. The default value is 0.7; above 1 only
	// exact copies are left out.
	Near float64 `json:"near"`
}

// The parameters of near-duplicate detection (Broder, "On the resemblance and
// containment of documents", 1997, with locality-sensitive hashing). A shingle is
// 5 consecutive words or punctuation marks. A document is described by the minima
// of 120 hash functions over its shingles. Documents are compared if they agree
// in all 5 minima of one of 24 bands, which finds a pair of similarity 0.7 with
// probability 1-(1-0.7⁵)²⁴ = 0.988, one of 0.8 with 0.9999 and one of 0.4 with
// 0.22. The share of equal minima then estimates the similarity with a standard
// error of at most 0.046.
const (
	shingleWords = 5
	bandRows     = 5
	bands        = 24
	minima       = bands * bandRows
	// maxCandidates is the number of documents compared per band, the latest
	// first: texts that share a band are many only where they are a licence header.
	maxCandidates = 32
)

// A signature describes a text for finding copies.
type signature struct {
	exact [16]byte // half of the SHA-256 of the text without white space
	near  *[minima]uint32
}

// A hasher makes signatures. It is for one goroutine.
type hasher struct {
	mul, add [minima]uint64
	squeezed []byte
}

// newHasher returns a hasher; all hashers are alike.
func newHasher() *hasher {
	h := &hasher{}
	r := rng.New(0x6d696e68617368, 0) // fixed: signatures do not depend on options
	for i := range h.mul {
		h.mul[i], h.add[i] = r.Uint64()|1, r.Uint64()
	}
	return h
}

// sign describes text. near is nil if text has fewer words than a shingle.
func (h *hasher) sign(text string) (s signature) {
	h.squeezed = h.squeezed[:0]
	for i := range len(text) {
		if c := text[i]; c > ' ' {
			h.squeezed = append(h.squeezed, c)
		}
	}
	sum := sha256.Sum256(h.squeezed)
	copy(s.exact[:], sum[:])

	var least [minima]uint32
	for i := range least {
		least[i] = 1<<32 - 1
	}
	var last [shingleWords]uint64
	n := 0
	eachWord(text, true, false, func(word uint64, _ bool) {
		copy(last[:], last[1:])
		last[shingleWords-1] = word
		if n++; n < shingleWords {
			return
		}
		x := uint64(0)
		for _, w := range last {
			x = x*0x9e3779b97f4a7c15 + w
		}
		x = mix(x)
		for i := range least {
			least[i] = min(least[i], uint32((x*h.mul[i]+h.add[i])>>32))
		}
	})
	if n >= shingleWords {
		s.near = &least
	}
	return s
}

// A dedup remembers the documents that were kept.
type dedup struct {
	o     DedupOptions
	exact map[[16]byte]struct{}
	near  []*[minima]uint32
	heads map[uint64]int32 // latest document with a band
	older [][bands]int32   // for each document and band the one before it, -1: none
}

func newDedup(o DedupOptions) *dedup {
	return &dedup{o: o, exact: map[[16]byte]struct{}{}, heads: map[uint64]int32{}}
}

// reject returns why the document is a copy, or "" and remembers it.
func (d *dedup) reject(s *signature) string {
	if d.o.Off {
		return ""
	}
	if _, ok := d.exact[s.exact]; ok {
		return ReasonExact
	}
	if s.near != nil && d.o.Near <= 1 {
		if d.similar(s.near) {
			return ReasonNear
		}
		d.remember(s.near)
	}
	d.exact[s.exact] = struct{}{}
	return ""
}

func (d *dedup) similar(a *[minima]uint32) bool {
	for b := range bands {
		at, ok := d.heads[bandKey(a, b)]
		for n := 0; ok && at >= 0 && n < maxCandidates; n++ {
			equal := 0
			for i, v := range d.near[at] {
				if v == a[i] {
					equal++
				}
			}
			if float64(equal) >= d.o.Near*minima {
				return true
			}
			at = d.older[at][b]
		}
	}
	return false
}

func (d *dedup) remember(a *[minima]uint32) {
	id := int32(len(d.near))
	var older [bands]int32
	for b := range bands {
		key := bandKey(a, b)
		older[b] = -1
		if head, ok := d.heads[key]; ok {
			older[b] = head
		}
		d.heads[key] = id
	}
	d.near = append(d.near, a)
	d.older = append(d.older, older)
}

func bandKey(a *[minima]uint32, band int) uint64 {
	x := uint64(band)
	for _, v := range a[band*bandRows : (band+1)*bandRows] {
		x = mix(x*0x9e3779b97f4a7c15 + uint64(v))
	}
	return x
}
