package rng

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"sort"
	"testing"

	"pgregory.net/rapid"
)

// The known-answer vectors of the Random123 distribution for philox4x32, 10 rounds.
func TestKnownAnswers(t *testing.T) {
	for _, c := range []struct {
		ctr  [4]uint32
		key  [2]uint32
		want [4]uint32
	}{
		{[4]uint32{}, [2]uint32{}, [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{[4]uint32{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}, [2]uint32{^uint32(0), ^uint32(0)},
			[4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{[4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, [2]uint32{0xa4093822, 0x299f31d0},
			[4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	} {
		if got := philox(c.ctr, c.key); got != c.want {
			t.Errorf("philox(%x, %x) = %x, want %x", c.ctr, c.key, got, c.want)
		}
	}
}

func TestPositionsAreRandomAccess(t *testing.T) {
	s := New(7, 9)
	words := make([]uint32, 41)
	for i := range words {
		words[i] = s.Uint32()
	}
	for _, i := range []int{40, 0, 3, 4, 39, 17, 17, 5} {
		if got := s.At(uint64(i)).Uint32(); got != words[i] {
			t.Errorf("word %d: %x, in sequence %x", i, got, words[i])
		}
	}
	if s.At(1<<63+5).Uint32() != Block(7, 9, (1<<63+5)>>2)[1] {
		t.Error("far position disagrees with Block")
	}
}

func TestStreamsAndSeedsDiffer(t *testing.T) {
	seen := map[[4]uint32]string{}
	for _, seed := range []uint64{0, 1, 1 << 32, 1 << 63} {
		for _, stream := range []uint64{0, 1, 1 << 32, 1 << 63} {
			b := Block(seed, stream, 0)
			name := fmt.Sprint(seed, "/", stream)
			if other, ok := seen[b]; ok {
				t.Errorf("%s and %s give the same block", name, other)
			}
			seen[b] = name
		}
	}
}

func TestStateContinues(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(rapid.Uint64().Draw(t, "seed"), rapid.Uint64().Draw(t, "stream"))
		s.At(rapid.Uint64Max(1<<62).Draw(t, "pos"))
		for range rapid.IntRange(0, 9).Draw(t, "skip") {
			s.Uint32()
		}
		b, err := s.State().MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var st State
		if err := st.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		r := New(0, 0)
		r.Uint32() // a filled block must not outlive SetState
		r.SetState(st)
		for i := range 9 {
			if a, b := s.Uint32(), r.Uint32(); a != b {
				t.Fatalf("word %d: %x and %x", i, a, b)
			}
		}
	})
	var st State
	for _, b := range [][]byte{nil, make([]byte, 29), []byte("nrng\x01")} {
		if st.UnmarshalBinary(b) == nil {
			t.Errorf("a state of %d bytes was accepted", len(b))
		}
	}
}

func TestUniformsAreExact(t *testing.T) {
	s := New(1, 2)
	var sum float64
	const n = 1 << 16
	for range n {
		f := s.Float32()
		if f < 0 || f >= 1 || f*(1<<24) != float32(math.Trunc(float64(f*(1<<24)))) {
			t.Fatalf("Float32 %v is not k/2^24 in [0, 1)", f)
		}
		d := s.Float64()
		if d < 0 || d >= 1 {
			t.Fatalf("Float64 %v outside [0, 1)", d)
		}
		sum += float64(f) + d
	}
	if mean := sum / (2 * n); math.Abs(mean-0.5) > 0.005 {
		t.Errorf("mean %v", mean)
	}
}

func TestIntN(t *testing.T) {
	s := New(3, 0)
	for _, n := range []int{-1, 0, 1} {
		if s.IntN(n) != 0 {
			t.Errorf("IntN(%d) is not 0", n)
		}
	}
	var count [7]int
	const total = 70000
	for range total {
		count[s.IntN(7)]++
	}
	for v, c := range count {
		if math.Abs(float64(c)-total/7) > 5*math.Sqrt(total/7) {
			t.Errorf("%d came %d times of %d", v, c, total)
		}
	}
	for range 100 {
		if v := s.IntN(math.MaxInt); v < 0 {
			t.Fatalf("IntN(MaxInt) = %d", v)
		}
	}
}

// Reference values: Φ⁻¹ from its definition, by bisection on erfc.
func TestQuantileAgainstErfc(t *testing.T) {
	ks := []uint64{0, 1, 2, 1000, 1 << 20, 1 << 40, 1 << 49, 1<<51 - 1, 1 << 51, 1<<52 - 1, 337769972052787}
	for i := range uint64(2000) {
		ks = append(ks, i*(1<<52/2000))
	}
	prev := math.Inf(-1)
	sort.Slice(ks, func(i, j int) bool { return ks[i] < ks[j] })
	for _, k := range ks {
		x := quantile(k)
		if x < prev {
			t.Fatalf("quantile(%d) = %v is below its predecessor %v", k, x, prev)
		}
		prev = x
		if m := quantile(1<<52 - 1 - k); m != -x {
			t.Errorf("quantile is not odd at %d: %v and %v", k, x, m)
		}
		p := (float64(k) + 0.5) / (1 << 52)
		want := bisect(p)
		if math.Abs(x-want) > 1e-12*math.Max(1, math.Abs(want)) && k < 1<<51 {
			t.Errorf("quantile(%d) = %.17g, want %.17g", k, x, want)
		}
	}
}

func bisect(p float64) float64 {
	lo, hi := -9.0, 1.0
	for range 80 {
		mid := (lo + hi) / 2
		if 0.5*math.Erfc(-mid/math.Sqrt2) < p {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

func TestNormalMoments(t *testing.T) {
	s := New(11, 12)
	const n = 200000
	var m1, m2, m3, m4 float64
	for range n {
		x := s.Normal()
		m1, m2, m3, m4 = m1+x, m2+x*x, m3+x*x*x, m4+x*x*x*x
	}
	for _, c := range []struct {
		name           string
		got, want, tol float64
	}{{"mean", m1 / n, 0, 0.012}, {"variance", m2 / n, 1, 0.016}, {"third moment", m3 / n, 0, 0.045}, {"fourth moment", m4 / n, 3, 0.12}} {
		if math.Abs(c.got-c.want) > c.tol {
			t.Errorf("%s %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestFillNormalIsNormal(t *testing.T) {
	for _, skip := range []int{0, 1, 2, 4} {
		for _, n := range []int{0, 1, 2, 3, 8, 9} {
			a, b := New(1, 1), New(1, 1)
			for range skip {
				a.Uint32()
				b.Uint32()
			}
			got := make([]float32, n)
			a.FillNormal(got, 0.02)
			for i := range got {
				if want := float32(b.Normal() * 0.02); got[i] != want {
					t.Errorf("skip %d, n %d, value %d: %v, want %v", skip, n, i, got[i], want)
				}
			}
			if a.State() != b.State() {
				t.Errorf("skip %d, n %d: states %v and %v", skip, n, a.State(), b.State())
			}
		}
	}
}

// The digest pins the bits on every platform: the suite also runs on arm64,
// whose compiler fuses multiplications with additions where it may.
func TestNormalBitsArePinned(t *testing.T) {
	s := New(2026, 1)
	h := sha256.New()
	var b [8]byte
	for range 20000 {
		binary.LittleEndian.PutUint64(b[:], math.Float64bits(s.Normal()))
		h.Write(b[:])
	}
	for k := range uint64(64) { // the far tails, which the sequence above hardly meets
		binary.LittleEndian.PutUint64(b[:], math.Float64bits(quantile(k*k*k*1009)))
		h.Write(b[:])
	}
	const want = "187c602a632975f010a7de1cca5cd5cb"
	if got := hex.EncodeToString(h.Sum(nil)[:16]); got != want {
		t.Errorf("digest of the first 20000 normals and 64 tail values: %s, want %s", got, want)
	}
}

func ExampleSource_At() {
	s := New(42, 0)
	first := s.Uint32()
	s.Uint32()
	fmt.Println(s.At(0).Uint32() == first, s.State().Pos)
	// Output: true 1
}

func BenchmarkFillNormal(b *testing.B) {
	dst := make([]float32, 4096)
	s := New(1, 0)
	b.SetBytes(int64(4 * len(dst)))
	for b.Loop() {
		s.FillNormal(dst, 0.02)
	}
}
