package events

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/telemetry/sink"
)

// Writer writes the events of a run. Its methods never block and never fail: what could
// not be written is counted. Those of a nil *Writer do nothing. It is for any number of
// goroutines.
type Writer struct {
	sink  *sink.Sink
	clock clock.Clock
}

// Options says where a run goes on.
type Options struct {
	// First is the number of the first step to come. A run that was resumed writes a new
	// file, and what earlier files hold of this step and later ones is void: it will come
	// again. 0: the directory is that of a new run.
	First int
	// FS is the disk; the default is the real one. Clock is for the times of events; the
	// default is the system's.
	FS    fsx.FS
	Clock clock.Clock
}

// prefix is what TensorBoard knows an event file by.
const prefix = "events.out.tfevents."

// Open returns a writer of a new file in dir, which it makes where it is missing.
func Open(dir string, o Options) *Writer {
	if o.FS == nil {
		o.FS = fsx.OS()
	}
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	name := fmt.Sprintf("%s%010d.%s.%d", prefix, stamp(o.FS, dir, o.Clock.Now()), filepath.Base(host), os.Getpid())
	w := &Writer{clock: o.Clock}
	header := func() []byte {
		head := record(w.event(0).string(3, "brain.Event:2")) // file_version
		if o.First > 0 {
			// session_log{status: START}: readers drop what they have from this step on.
			head = append(head, record(w.event(o.First).bytes(7, message(nil).varint(1, 1)))...)
		}
		return head
	}
	w.sink = sink.NewFile(sink.OpenFile(o.FS, filepath.Join(dir, name), header, o.Clock))
	return w
}

// stamp is the seconds since 1970, and more than those of any file in dir: TensorBoard
// reads the files of a directory in the order of their names.
func stamp(fsys fsx.FS, dir string, now time.Time) int64 {
	s := max(now.Unix(), 0)
	list, err := fsys.ReadDir(dir)
	if err != nil {
		return s // a new directory
	}
	for _, e := range list {
		number, _, _ := strings.Cut(strings.TrimPrefix(e.Name(), prefix), ".")
		if n, err := strconv.ParseInt(number, 10, 64); err == nil && strings.HasPrefix(e.Name(), prefix) && n >= s && n < 1e10-1 {
			s = n + 1
		}
	}
	return s
}

// event begins an Event message.
func (w *Writer) event(step int) message {
	return message(nil).double(1, float64(w.clock.Now().UnixNano())/1e9).varint(2, uint64(step))
}

// Scalar is a number with a name. TensorBoard keeps 32 bits of it.
type Scalar struct {
	Tag   string
	Value float64
}

// Scalars writes the numbers of a step.
func (w *Writer) Scalars(step int, values ...Scalar) {
	if w == nil || len(values) == 0 {
		return
	}
	var sum message
	for _, v := range values {
		sum = sum.bytes(1, message(nil).string(1, valid(v.Tag)).float(2, float32(v.Value)))
	}
	w.write(step, sum)
}

// Histogram is a distribution: Counts[i] values lie above Limits[i-1], or without a
// lower limit for i = 0, and at or below Limits[i].
type Histogram struct {
	Min, Max, Num, Sum, SumSquares float64
	Limits, Counts                 []float64
}

// Histogram writes a distribution; an empty one is passed over.
func (w *Writer) Histogram(step int, tag string, h *Histogram) {
	if w == nil || h == nil || h.Num == 0 || len(h.Limits) != len(h.Counts) {
		return
	}
	m := message(nil).double(1, h.Min).double(2, h.Max).double(3, h.Num).double(4, h.Sum).double(5, h.SumSquares).
		doubles(6, h.Limits).doubles(7, h.Counts)
	w.write(step, message(nil).bytes(1, message(nil).string(1, valid(tag)).bytes(5, m)))
}

// Text writes a text in Markdown.
func (w *Writer) Text(step int, tag, text string) {
	if w == nil {
		return
	}
	const dtString = 7
	shape := message(nil).bytes(2, message(nil).varint(1, 1)) // one dimension of size 1
	tensor := message(nil).varint(1, dtString).bytes(2, shape).string(8, valid(text))
	meta := message(nil).bytes(1, message(nil).string(1, "text"))
	w.write(step, message(nil).bytes(1, message(nil).string(1, valid(tag)).bytes(8, tensor).bytes(9, meta)))
}

func (w *Writer) write(step int, summary message) {
	w.sink.Write(record(w.event(step).bytes(5, summary)))
}

// valid is s as protobuf demands strings to be.
func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// Dropped is the number of events that were lost.
func (w *Writer) Dropped() int64 {
	if w == nil {
		return 0
	}
	return w.sink.Dropped()
}

// Close writes what waits, for a second at most.
func (w *Writer) Close() {
	if w != nil {
		w.sink.Close()
	}
}

// bins is the number of classes of HistogramOf.
const bins = 64

// HistogramOf is the distribution of v in classes of equal width. Values that are no
// numbers or infinite do not count.
func HistogramOf(v []float32) *Histogram {
	h := &Histogram{Min: math.Inf(1), Max: math.Inf(-1)}
	for _, x := range v {
		f := float64(x)
		if math.IsNaN(f) || math.IsInf(f, 0) {
			continue
		}
		h.Min, h.Max = min(h.Min, f), max(h.Max, f)
		h.Num++
		h.Sum += f
		h.SumSquares += f * f
	}
	if h.Num == 0 {
		return h
	}
	if h.Min == h.Max {
		h.Limits, h.Counts = []float64{h.Max}, []float64{h.Num}
		return h
	}
	width := (h.Max - h.Min) / bins
	h.Limits, h.Counts = make([]float64, bins), make([]float64, bins)
	for i := range h.Limits {
		h.Limits[i] = h.Min + float64(i+1)*width
	}
	h.Limits[bins-1] = h.Max
	for _, x := range v {
		// A number that is none becomes any integer, hence the comparison before.
		if f := (float64(x) - h.Min) / width; f >= 0 && f <= bins {
			h.Counts[min(int(f), bins-1)]++
		}
	}
	return h
}

// HistogramOfTrits is the distribution of so many trits of -1, 0 and 1.
func HistogramOfTrits(minus, zero, plus int) *Histogram {
	h := &Histogram{
		Min: -1, Max: 1, Num: float64(minus + zero + plus), Sum: float64(plus - minus), SumSquares: float64(plus + minus),
		Limits: []float64{-0.5, 0.5, 1.5}, Counts: []float64{float64(minus), float64(zero), float64(plus)},
	}
	if minus == 0 {
		h.Min = 0
	}
	if plus == 0 {
		h.Max = 0
	}
	return h
}
