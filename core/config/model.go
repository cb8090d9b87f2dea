package config

// Model is the shape of a network. The zero value is not valid; DefaultModel
// gives the values of keys that a file leaves out.
type Model struct {
	// Dim is the width of the residual stream.
	Dim int
	// Layers is the number of blocks, each attention then FFN.
	Layers int
	// Heads and KVHeads are the numbers of query and of key/value heads. Query
	// head h reads key/value head h/(Heads/KVHeads).
	Heads, KVHeads int
	// HeadDim is the length of one head's query, key and value. It is even.
	HeadDim int
	// FFN is the inner width of the feed-forward part.
	FFN int
	// FFNKind is FFNSwiGLU, FFNReLU2 or FFNReLU2GLU.
	FFNKind string
	// Vocab is the number of token ids; Context the largest number of positions.
	Vocab, Context int
	// RopeTheta is the base of the rotary angles; NormEps is added to mean squares.
	RopeTheta, NormEps float64
	// TieEmbeddings uses the embedding matrix as the head.
	TieEmbeddings bool
	// Embedding and Head are the storage types of those matrices: TypeF16 or
	// TypeQ8_0. Head has no meaning when TieEmbeddings is set.
	Embedding, Head string
	// Group is the number of consecutive inputs that share one ternary scale: 64,
	// 128 or 256, or 0 for one scale per row.
	Group int
	// QKNorm normalises every head's query and key before rotation.
	QKNorm bool
	// SubNorm normalises the inputs of the output and the down projection.
	SubNorm bool
	// LogitSoftcap c replaces a logit z by c·tanh(z/c); 0 leaves it.
	LogitSoftcap float64
	// ResidualScalars gives each layer one scalar on the residual stream and one
	// on the embedding added to it.
	ResidualScalars bool
	// Streams is the number of residual streams mixed by hyper-connections: 1, 2
	// or 4. With 1 the network is the plain residual one, and MHC, MHCDynamic and
	// SinkhornIters have no meaning.
	Streams int
	// MHC is how the mixing matrix is kept doubly stochastic: MHCBvN or MHCSinkhorn.
	MHC string
	// MHCDynamic lets the mixing depend on the input.
	MHCDynamic bool
	// SinkhornIters is the number of row and column normalisations of MHCSinkhorn.
	SinkhornIters int
}

// The feed-forward kinds, storage types and mixing methods of a Model.
const (
	FFNSwiGLU   = "swiglu"    // down(silu(gate)·up)
	FFNReLU2    = "relu2"     // down(relu(up)²)
	FFNReLU2GLU = "relu2_glu" // down(relu(gate)²·up)
	TypeF16     = "f16"
	TypeQ8_0    = "q8_0"
	MHCBvN      = "bvn"
	MHCSinkhorn = "sinkhorn"
)

// DefaultModel holds the default of every key that has one. KVHeads and HeadDim
// are 0, which stands for Heads and for Dim/Heads until a file is complete.
func DefaultModel() Model {
	return Model{
		FFNKind: FFNSwiGLU, Context: 2048, RopeTheta: 10000, NormEps: 1e-5,
		Embedding: TypeF16, Head: TypeF16, Group: 128,
		Streams: 1, MHC: MHCBvN, SinkhornIters: 20,
	}
}

// ParamCount counts weights by part. Ternary scales are not counted: they are
// part of how a ternary weight is stored.
type ParamCount struct {
	// Ternary counts the projection matrices of all layers.
	Ternary int64
	// Embedding is Vocab·Dim; Head is the same, or 0 when it is tied.
	Embedding, Head int64
	// Norms counts norm weights and, with ResidualScalars, 2 scalars per layer.
	Norms int64
	// MHC counts the logits, gates and projections of the hyper-connections.
	MHC int64
}

// Total is the sum of all parts.
func (p ParamCount) Total() int64 { return p.Ternary + p.Embedding + p.Head + p.Norms + p.MHC }

// Params counts the weights of m.
func (m Model) Params() ParamCount {
	dim, layers := int64(m.Dim), int64(m.Layers)
	q, kv, ffn := int64(m.Heads*m.HeadDim), int64(m.KVHeads*m.HeadDim), int64(m.FFN)
	matrices := int64(3)
	if m.FFNKind == FFNReLU2 {
		matrices = 2
	}
	var p ParamCount
	p.Ternary = layers * (dim*q + 2*dim*kv + q*dim + matrices*dim*ffn)
	p.Embedding = int64(m.Vocab) * dim
	if !m.TieEmbeddings {
		p.Head = p.Embedding
	}
	perLayer := 2 * dim
	if m.QKNorm {
		perLayer += 2 * int64(m.HeadDim)
	}
	if m.SubNorm {
		perLayer += q + ffn
	}
	if m.ResidualScalars {
		perLayer += 2
	}
	p.Norms = layers*perLayer + dim
	p.MHC = 2 * layers * m.mhcSite()
	return p
}

// TrainFLOPs is the arithmetic of a forward and a backward pass over tokens, in
// operations, by the usual count: 6 for each token and weight that multiplies, the head
// included and the look-up in the embedding not, and in every layer 12 for each element
// of a query and pair of tokens, one of which attends to the other. What recomputation
// and quantisation cost is not counted.
func (m Model) TrainFLOPs(tokens, pairs int64) float64 {
	weights := float64(m.Params().Ternary) + float64(m.Vocab)*float64(m.Dim)
	return 6*weights*float64(tokens) + 12*float64(m.Layers*m.Heads*m.HeadDim)*float64(pairs)
}

// mhcSite counts the weights of one hyper-connection; a layer has two.
func (m Model) mhcSite() int64 {
	n := int64(m.Streams)
	if n <= 1 {
		return 0
	}
	// The residual matrix has one logit per permutation (Birkhoff-von Neumann) or
	// per entry (Sinkhorn-Knopp); h_pre and h_post have one per stream.
	res := n * n
	if m.MHC == MHCBvN {
		res = 1
		for i := int64(2); i <= n; i++ {
			res *= i
		}
	}
	static := 2*n + res
	if !m.MHCDynamic {
		return static
	}
	// Dynamic logits add a projection of all streams and one gate per logit group.
	return static + n*int64(m.Dim)*static + 3
}
