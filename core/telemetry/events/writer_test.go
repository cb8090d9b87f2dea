package events

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
)

// records reads the frames of a file and checks them.
func records(t *testing.T, b []byte) (out [][]byte) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 16 {
			t.Fatalf("%d bytes after the last record", len(b))
		}
		n := binary.LittleEndian.Uint64(b)
		if sum := binary.LittleEndian.Uint32(b[8:]); sum != masked(b[:8]) {
			t.Fatalf("checksum of a length is %08x", sum)
		}
		if uint64(len(b)) < 16+n {
			t.Fatalf("a record of %d bytes, %d are left", n, len(b)-16)
		}
		data := b[12:][:n]
		if sum := binary.LittleEndian.Uint32(b[12+n:]); sum != masked(data) {
			t.Fatalf("checksum of a record is %08x", sum)
		}
		out, b = append(out, data), b[16+n:]
	}
	return out
}

// The mask of the CRC of 32 zero bytes, whose CRC-32C is 8A9136AA by RFC 3720 B.4.
func TestMasked(t *testing.T) {
	crc := uint32(0x8a9136aa)
	if got, want := masked(make([]byte, 32)), (crc>>15|crc<<17)+0xa282ead8; got != want {
		t.Errorf("%08x, want %08x", got, want)
	}
}

func TestFilesOfARun(t *testing.T) {
	disk := fsx.NewCrash(1)
	c := clock.NewManual(time.Unix(1_700_000_000, 0))
	for _, first := range []int{0, 8, 5} { // three starts within a second
		w := Open("run/tensorboard", Options{First: first, FS: disk, Clock: c})
		w.Scalars(first+1, Scalar{"loss", 1.5}, Scalar{"nan", math.NaN()})
		w.Scalars(first + 1)
		w.Histogram(first+1, "empty", HistogramOf(nil))
		w.Text(first+1, "bad \xff", "text \xfe")
		w.Close()
		w.Scalars(99, Scalar{"late", 1})
		if w.Dropped() != 1 {
			t.Errorf("%d dropped, want the one after Close", w.Dropped())
		}
	}
	list, err := disk.ReadDir("run/tensorboard")
	if err != nil || len(list) != 3 {
		t.Fatalf("%d files, %v", len(list), err)
	}
	for i, e := range list {
		if !strings.HasPrefix(e.Name(), prefix+"170000000"+string(rune('0'+i))+".") {
			t.Errorf("file %d is %s", i, e.Name())
		}
		b, err := fsx.ReadFile(disk, "run/tensorboard/"+e.Name(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := len(records(t, b)), []int{3, 4, 4}[i]; got != want {
			t.Errorf("%s has %d records, want %d", e.Name(), got, want)
		}
	}
}

func TestNilWriter(t *testing.T) {
	var w *Writer
	w.Scalars(1, Scalar{"a", 1})
	w.Histogram(1, "h", HistogramOf([]float32{1}))
	w.Text(1, "t", "x")
	w.Close()
	if w.Dropped() != 0 {
		t.Error("nil drops")
	}
}

func TestHistogramOf(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	h := HistogramOf([]float32{-1, nan, 3, 0, inf, 3, -inf})
	if h.Num != 4 || h.Min != -1 || h.Max != 3 || h.Sum != 5 || h.SumSquares != 19 {
		t.Errorf("%+v", h)
	}
	if h.Counts[0] != 1 || h.Counts[16] != 1 || h.Counts[bins-1] != 2 || h.Limits[bins-1] != 3 || len(h.Limits) != bins || !slices.IsSorted(h.Limits) {
		t.Errorf("%+v", h)
	}
	if h := HistogramOf([]float32{2, 2, nan}); h.Num != 2 || len(h.Counts) != 1 || h.Counts[0] != 2 {
		t.Errorf("equal values: %+v", h)
	}
	if h := HistogramOf([]float32{nan, inf}); h.Num != 0 {
		t.Errorf("no numbers: %+v", h)
	}
	// No value is lost whatever the range, down to the smallest numbers.
	for _, v := range [][]float32{{1e-45, 0}, {3e38, -3e38, 1}, {1, math.Nextafter32(1, 2)}} {
		h, sum := HistogramOf(v), 0.
		for _, n := range h.Counts {
			sum += n
		}
		if sum != float64(len(v)) {
			t.Errorf("%g: %g of %d counted: %+v", v, sum, len(v), h)
		}
	}
	h = HistogramOfTrits(2, 5, 3)
	if h.Num != 10 || h.Sum != 1 || h.SumSquares != 5 || !slices.Equal(h.Counts, []float64{2, 5, 3}) {
		t.Errorf("trits: %+v", h)
	}
}
