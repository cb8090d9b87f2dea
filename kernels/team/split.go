package team

// Range is this worker's part of 0..n: lo ≤ i < hi. The parts of all workers
// cover 0..n once, in order of ID, as even as whole blocks of align allow; a
// boundary is a multiple of align, or n. A part may be empty.
func (w *Worker) Range(n, align int) (lo, hi int) {
	return Split(n, align, w.ID, w.N)
}

// Split is part id of parts of the range 0..n; see Worker.Range.
func Split(n, align, id, parts int) (lo, hi int) {
	if n <= 0 {
		return 0, 0
	}
	align = max(align, 1)
	blocks := (n + align - 1) / align
	lo = blocks * id / parts * align
	hi = blocks * (id + 1) / parts * align
	return min(lo, n), min(hi, n)
}

// A Counter deals out one range in chunks to whichever worker is free; see
// Worker.Counter.
type Counter struct {
	// Lo and Hi are the chunk taken last: Lo ≤ i < Hi.
	Lo, Hi int

	n, align int
	chunk    uint32 // blocks per chunk
	blocks   uint32
	number   uint32
}

// Counter begins a loop over 0..n whose chunks go to whichever worker is free,
// which helps where cores are shared with others. Every worker must begin the
// same loops in the same order. Boundaries are multiples of align, or n, and a
// chunk has at least grain elements; grain ≤ 0 means about eight chunks per
// worker.
//
//	c := w.Counter(rows, 16, 0)
//	for w.Next(&c) {
//		… rows c.Lo ≤ r < c.Hi …
//	}
//
// Starting a loop is no barrier, and neither is its end.
func (w *Worker) Counter(n, align, grain int) Counter {
	align = max(align, 1)
	blocks := (max(n, 0) + align - 1) / align
	chunk := blocks / (8 * w.N)
	if grain > 0 {
		chunk = (grain + align - 1) / align
	}
	c := Counter{n: n, align: align, chunk: uint32(max(chunk, 1)), blocks: uint32(blocks), number: w.loops}
	w.loops++
	return c
}

// Next takes the next chunk of c and reports whether there was one.
//
// All loops of a team share one word: the number of the loop and the next block
// of it. A worker that finds a later loop there knows that its own was dealt out
// to the end, because a worker goes on only then.
func (w *Worker) Next(c *Counter) bool {
	word := &w.team.chunk
	for {
		v := word.Load()
		next := uint32(v)
		switch ahead := int32(uint32(v>>32) - c.number); {
		case ahead > 0:
			return false
		case ahead < 0:
			next = 0
		}
		if next >= c.blocks {
			return false
		}
		end := min(next+c.chunk, c.blocks)
		if word.CompareAndSwap(v, uint64(c.number)<<32|uint64(end)) {
			c.Lo = int(next) * c.align
			c.Hi = min(int(end)*c.align, c.n)
			return true
		}
	}
}
