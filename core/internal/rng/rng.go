// Package rng makes random numbers that depend on a seed, a stream and a
// position, and on nothing else.
//
// The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). Word i of a stream is a pure function
// of (seed, stream, i), so that work can be split over threads by position, and
// a saved State continues the same sequence on any machine. Every number is
// the same on every platform: floating-point steps that a compiler may fuse are
// separated, and logarithms are computed here. It is not for cryptography.
package rng

import (
	"encoding/binary"
	"errors"
)

// Source is one stream of random words. It is not safe for concurrent use; make
// one per goroutine with its own stream or position.
type Source struct {
	seed, stream uint64
	pos          uint64 // index of the next word
	block        [4]uint32
	have         uint64 // block holds words of block index have-1; 0: nothing yet
}

// State is everything a Source is: it can be stored and continued.
type State struct {
	Seed, Stream uint64
	// Pos is the index of the next 32-bit word.
	Pos uint64
}

// New returns a source at position 0. Sources with different seeds or streams
// are independent of each other.
func New(seed, stream uint64) *Source { return &Source{seed: seed, stream: stream} }

// FromState returns a source that continues from s.
func FromState(s State) *Source { return &Source{seed: s.Seed, stream: s.Stream, pos: s.Pos} }

// State returns the present state.
func (s *Source) State() State { return State{Seed: s.seed, Stream: s.stream, Pos: s.pos} }

// SetState replaces the state.
func (s *Source) SetState(st State) { *s = *FromState(st) }

// At moves to word pos and returns s. Any position costs the same.
func (s *Source) At(pos uint64) *Source {
	s.pos = pos
	return s
}

// Uint32 returns the next word and advances the position by 1.
func (s *Source) Uint32() uint32 {
	b := s.pos >> 2
	if s.have != b+1 {
		s.block = Block(s.seed, s.stream, b)
		s.have = b + 1
	}
	w := s.block[s.pos&3]
	s.pos++
	return w
}

// Uint64 returns two words, the first in the low half, and advances by 2.
func (s *Source) Uint64() uint64 {
	lo := uint64(s.Uint32())
	return lo | uint64(s.Uint32())<<32
}

// Float32 returns k/2^24 for a uniform 24-bit k: in [0, 1), exact. It advances by 1.
func (s *Source) Float32() float32 { return float32(s.Uint32()>>8) * (1.0 / (1 << 24)) }

// Float64 returns k/2^53 for a uniform 53-bit k: in [0, 1), exact. It advances by 2.
func (s *Source) Float64() float64 { return float64(s.Uint64()>>11) * (1.0 / (1 << 53)) }

// IntN returns a uniform integer in [0, n) and advances by 2 or more. It
// rejects the few words that would make some results likelier than others.
// It returns 0 for n ≤ 1.
func (s *Source) IntN(n int) int {
	if n <= 1 {
		return 0
	}
	m := uint64(n)
	// The largest multiple of m that fits; words from there on are rejected.
	limit := -(-m % m) // 2^64 - (2^64 mod m), 0 when m divides 2^64
	for {
		if w := s.Uint64(); limit == 0 || w < limit {
			return int(w % m)
		}
	}
}

// Block returns words 4·index to 4·index+3 of a stream: Philox4x32-10 with the
// counter (index, stream) and the key seed, low halves first.
func Block(seed, stream, index uint64) [4]uint32 {
	return philox(
		[4]uint32{uint32(index), uint32(index >> 32), uint32(stream), uint32(stream >> 32)},
		[2]uint32{uint32(seed), uint32(seed >> 32)})
}

func philox(c [4]uint32, k [2]uint32) [4]uint32 {
	const (
		mul0, mul1       = 0xD2511F53, 0xCD9E8D57
		weyl0, weyl1     = 0x9E3779B9, 0xBB67AE85
		rounds       int = 10
	)
	c0, c1, c2, c3, k0, k1 := c[0], c[1], c[2], c[3], k[0], k[1]
	for range rounds {
		p0, p1 := uint64(c0)*mul0, uint64(c2)*mul1
		c0, c1, c2, c3 = uint32(p1>>32)^c1^k0, uint32(p1), uint32(p0>>32)^c3^k1, uint32(p0)
		k0 += weyl0
		k1 += weyl1
	}
	return [4]uint32{c0, c1, c2, c3}
}

const stateMagic = "nrng\x01"

// MarshalBinary writes the state in 29 bytes: a tag and three little-endian words.
func (st State) MarshalBinary() ([]byte, error) {
	b := []byte(stateMagic)
	for _, v := range [...]uint64{st.Seed, st.Stream, st.Pos} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b, nil
}

// UnmarshalBinary reads what MarshalBinary wrote.
func (st *State) UnmarshalBinary(b []byte) error {
	if len(b) != len(stateMagic)+24 || string(b[:len(stateMagic)]) != stateMagic {
		return errors.New("rng: not a saved state of this version (29 bytes starting \"nrng\\x01\")")
	}
	b = b[len(stateMagic):]
	*st = State{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
	return nil
}
