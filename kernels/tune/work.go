package tune

import (
	"encoding/binary"
	"math"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/numa"
	"github.com/architehc/nanochat/kernels/team"
)

// Work is synthetic data for one shape. It is used by one team at a time.
type Work struct {
	Shape   Shape
	ternary []kernels.Ternary
	dense   []kernels.Dense
	memory  []*numa.Memory
	x       []float32      // [Batch][K]
	acts    []*kernels.Act // one per worker for GEMV, one for all for GEMM
	dst     []float32      // [Batch][M]
	scratch [][]byte       // per worker
}

// NewWork makes data for s and a team of the given size. With workingSet > 0
// there are enough copies of the matrix, used in turn, that together they exceed
// that many bytes, so that a cache of that size cannot hold them.
func NewWork(s Shape, threads, workingSet int) (*Work, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	w := &Work{Shape: s}
	copies := 1
	if workingSet > 0 {
		copies = workingSet/s.WeightBytes() + 1
	}
	for range copies {
		if err := w.addMatrix(); err != nil {
			w.Close()
			return nil, err
		}
	}
	w.x = make([]float32, s.Batch*s.K)
	for i := range w.x {
		w.x[i] = float32(math.Sin(float64(i%8191) * 0.37))
	}
	w.dst = make([]float32, s.Batch*s.M)
	switch {
	case !s.Int8():
	case s.gemv():
		for range threads {
			w.acts = append(w.acts, kernels.NewAct(1, s.K, s.actGroup()))
		}
	default:
		w.acts = []*kernels.Act{kernels.NewAct(s.Batch, s.K, s.actGroup())}
		for range threads {
			w.scratch = append(w.scratch, kernels.AlignedBytes(kernels.GEMMScratch(s.Batch, s.K)))
		}
	}
	return w, nil
}

// addMatrix adds one matrix of valid, irregular weights.
func (w *Work) addMatrix() error {
	s := w.Shape
	m, err := numa.Alloc(s.WeightBytes(), numa.Any, true)
	if err != nil {
		return err
	}
	w.memory = append(w.memory, m)
	b := m.Bytes()
	if s.ternary() {
		t := kernels.Ternary{Rows: s.M, Cols: s.K, Group: s.Group, Gain: 1}
		tiles := t.Blocks() * t.ColTiles() * 64
		t.Tiles = b[:tiles:tiles]
		fillTrits(t.Tiles)
		t.Scales = kernels.U16View(b[tiles:]) // in the same huge pages, as a model has them
		for i := range t.Scales {
			t.Scales[i] = kernels.F32ToF16(0.01 + float32(i%17)*0.001)
		}
		w.ternary = append(w.ternary, t)
		return nil
	}
	fillDense(b, s.Type)
	w.dense = append(w.dense, kernels.Dense{Rows: s.M, Cols: s.K, Type: s.Type, Data: b})
	return nil
}

// fillTrits writes bytes of four valid codes each.
func fillTrits(b []byte) {
	var valid []byte
	for c := range 256 {
		if c&3 != 3 && c>>2&3 != 3 && c>>4&3 != 3 && c>>6 != 3 {
			valid = append(valid, byte(c))
		}
	}
	state := uint64(0x9E3779B97F4A7C15)
	for i := range b {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		b[i] = valid[state>>32%uint64(len(valid))]
	}
}

// fillDense writes finite weights of about ±1/64.
func fillDense(b []byte, t kernels.DType) {
	for i := range b { // Q8_0 keeps these values
		b[i] = byte(i*7 + i>>8)
	}
	value := func(i int) float32 { return float32(i%127-63) / 4096 }
	switch t {
	case kernels.F16:
		for i := 0; i+2 <= len(b); i += 2 {
			binary.LittleEndian.PutUint16(b[i:], kernels.F32ToF16(value(i/2)))
		}
	case kernels.BF16:
		for i := 0; i+2 <= len(b); i += 2 {
			binary.LittleEndian.PutUint16(b[i:], kernels.F32ToBF16(value(i/2)))
		}
	case kernels.F32:
		for i := 0; i+4 <= len(b); i += 4 {
			binary.LittleEndian.PutUint32(b[i:], math.Float32bits(value(i/4)))
		}
	case kernels.Q8_0:
		for i := 0; i+34 <= len(b); i += 34 {
			binary.LittleEndian.PutUint16(b[i:], kernels.F32ToF16(1.0/8192))
		}
	}
}

// Prepare quantises the activations of a GEMM, outside the timed part. A GEMV
// quantises inside Run, once per worker, as the decoder does.
func (w *Work) Prepare(set *kernels.Set) {
	if w.Shape.Int8() && !w.Shape.gemv() {
		for t := range w.Shape.Batch {
			w.acts[0].Set(set, t, w.x[t*w.Shape.K:])
		}
	}
}

// Run computes the product once, on every worker of a team together, and ends
// at a barrier. i counts the calls: copy i of the matrix is used. grain 0 gives each worker one
// part of the rows; otherwise workers take grain rows at a time.
func (w *Work) Run(set *kernels.Set, wk *team.Worker, i, grain int) {
	s := w.Shape
	if s.Int8() && s.gemv() {
		w.acts[wk.ID].Set(set, 0, w.x)
	}
	if grain == 0 {
		lo, hi := wk.Range(s.M, kernels.TileSide)
		w.rows(set, wk.ID, i, lo, hi)
	} else {
		c := wk.Counter(s.M, kernels.TileSide, grain)
		for wk.Next(&c) {
			w.rows(set, wk.ID, i, c.Lo, c.Hi)
		}
	}
	wk.Barrier()
}

// rows computes rows lo ≤ r < hi.
func (w *Work) rows(set *kernels.Set, id, i, lo, hi int) {
	if lo >= hi {
		return
	}
	s := w.Shape
	switch s.Op {
	case TernaryGEMV:
		set.TernaryGEMV(w.dst, &w.ternary[i%len(w.ternary)], w.acts[id], lo, hi)
	case TernaryGEMM:
		set.TernaryGEMM(w.dst, s.M, &w.ternary[i%len(w.ternary)], w.acts[0], lo, hi, w.scratch[id])
	case DenseGEMV:
		set.DenseGEMV(w.dst, &w.dense[i%len(w.dense)], w.x, lo, hi)
	case DenseGEMM:
		set.DenseGEMM(w.dst, s.M, &w.dense[i%len(w.dense)], w.x, s.K, s.Batch, lo, hi)
	case Q8GEMV:
		set.Q8GEMV(w.dst, &w.dense[i%len(w.dense)], w.acts[id], lo, hi)
	case Q8GEMM:
		set.Q8GEMM(w.dst, s.M, &w.dense[i%len(w.dense)], w.acts[0], lo, hi)
	}
}

// Weights is the memory of copy i of the matrix, with the scales of a ternary one at
// its end, for measuring how fast it can be read.
func (w *Work) Weights(i int) []byte { return w.memory[i%len(w.memory)].Bytes() }

// Result is what the last Run computed, [Batch][M].
func (w *Work) Result() []float32 { return w.dst }

// Close frees the matrices.
func (w *Work) Close() {
	for _, m := range w.memory {
		_ = m.Free()
	}
	w.memory, w.ternary, w.dense = nil, nil, nil
}
