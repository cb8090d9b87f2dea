package infer

// A backend is what the scheduler needs of a model and its cache: the model of
// core/model, or a small deterministic one in tests.
type backend interface {
	// vocab is the number of token ids, context the number of positions.
	vocab() int
	context() int
	// pages is the number of pages; alloc takes one, free returns it.
	pages() int
	alloc() (page int32, ok bool)
	free(page int32)
	// copy makes page dst hold what page src does.
	copy(dst, src int32)
	// forward computes one step. Afterwards row(i) holds the logits, numbered
	// in the order of the tokens they were asked for. They stand until the next forward.
	forward(b *batch) error
	row(i int) []float32
	// dim is the length of a hidden state; hidden is that of token i of span s, which
	// has asked for them. It stands until the next forward.
	dim() int
	hidden(s, i int) []float32
	// close frees everything.
	close()
}

// A batch is the work of one step.
type batch struct {
	// tokens of all spans, one span after the other.
	tokens []int32
	spans  []span
}

// A span is a run of consecutive tokens of one sequence.
type span struct {
	// pages of the sequence; they have room for pos+n positions.
	pages []int32
	// pos positions are in the cache already; n tokens follow.
	pos, n int
	// rows is how many of the last tokens want logits: 0, 1 or n. hidden says that
	// all want their hidden states.
	rows   int
	hidden bool
}
