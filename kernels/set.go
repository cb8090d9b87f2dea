package kernels

// TileSide is the number of rows and of columns in one t16 tile.
const TileSide = 16

// PageLen is the number of positions in one page of a KV cache, and the block
// length of the online softmax: scores are reduced page by page, from position
// 0, so a result depends on positions only, never on how queries are grouped.
const PageLen = 64

// Ternary is a ternary matrix W [Rows, Cols] in t16 tiles.
//
// A tile is 64 bytes and holds 16 rows by 16 columns as codes trit+1. Byte
// 4r+c of a tile holds columns c, c+4, c+8 and c+12 of row r in bits 0-1, 2-3,
// 4-5 and 6-7. The tiles of one block of 16 rows are contiguous over columns.
// Padding rows and columns hold code 1 (trit 0). Code 3 is invalid in a file;
// kernels give it the value 2 so that every variant agrees on it.
type Ternary struct {
	Rows, Cols int
	// Group is the number of consecutive inputs that share one scale of a row:
	// a multiple of 16, or Cols for one scale per row.
	Group int
	// Tiles is [ceil(Rows/16)][ceil(Cols/16)][64], aligned to 64 bytes.
	Tiles []byte
	// Scales is IEEE half precision, [ceil(Rows/16)][ceil(Cols/Group)][16].
	Scales []uint16
	// Gain multiplies the activation scale. It is 1 except for matrices imported
	// from formats whose scale half precision cannot hold.
	Gain float32
}

// Blocks is the number of 16-row blocks.
func (w *Ternary) Blocks() int { return (w.Rows + TileSide - 1) / TileSide }

// ColTiles is the number of tiles in one block.
func (w *Ternary) ColTiles() int { return (w.Cols + TileSide - 1) / TileSide }

// Groups is the number of scales of one row.
func (w *Ternary) Groups() int { return (w.Cols + w.Group - 1) / w.Group }

// Act holds N activation vectors of length Cols, quantised to int8 per token.
//
// Token t's values are Q[t*Stride : t*Stride+Cols], followed by zeros up to
// Stride, which is Cols rounded up to a multiple of 64.
type Act struct {
	N, Cols, Stride int
	// Group is the group length of the matrices this meets; Sums depends on it.
	Group int
	Q     []int8
	// Scale[t] is max|x|/127 of token t: x is about Scale*Q.
	Scale []float32
	// Sums is [N][ceil(Cols/Group)]: the sum of Q over each group.
	Sums []int32
}

// DType is the storage type of a Dense matrix, numbered as in ggml.
type DType uint32

// The storage types that Dense kernels read.
const (
	F32  DType = 0
	F16  DType = 1
	Q8_0 DType = 8
	BF16 DType = 30
)

// Dense is a float matrix W [Rows, Cols], row by row. A Q8_0 row is Cols/32
// blocks of one half-precision scale and 32 int8 values (34 bytes).
type Dense struct {
	Rows, Cols int
	Type       DType
	Data       []byte
}

// KVType is the storage type of a KV cache.
type KVType uint8

// The storage types of a KV cache. KVI8 keeps one f32 scale per position, head
// and side (key or value): max|x|/127.
const (
	KVF16 KVType = iota
	KVI8
)

// KV is one layer's keys and values of one sequence, in pages of PageLen
// positions. Position p is in page Pages[p/PageLen] of Slab. Inside a page this
// layer's part starts at LayerOffset and holds, per KV head: K
// [PageLen][HeadDim], V [PageLen][HeadDim] in Type; and for KVI8 after each
// head's V: K scales [PageLen] f32 and V scales [PageLen] f32.
type KV struct {
	Type           KVType
	Heads, HeadDim int
	Slab           []byte
	Pages          []int32
	PageBytes      int
	LayerOffset    int
}

// HeadBytes is the size of one KV head's part of a page.
func (t KVType) HeadBytes(headDim int) int {
	if t == KVI8 {
		return 2*PageLen*headDim + 2*4*PageLen
	}
	return 2 * 2 * PageLen * headDim
}

// Query describes attention of consecutive queries of one sequence: query i
// stands at position Pos+i and sees positions 0..Pos+i.
type Query struct {
	Pos, N int
	// Heads is the number of query heads; query head h reads KV head h/(Heads/KV.Heads).
	Heads int
	// Scale multiplies q·k, usually 1/sqrt(HeadDim).
	Scale float32
}

// Set is one implementation of every leaf kernel. All sets give the same bits,
// MatMulBF16 excepted.
//
// A kernel computes on the calling thread, allocates nothing, and works on the
// half-open range of rows or heads it is given, so callers split work freely:
// no result depends on the split. dst comes first. Wrong lengths panic with a
// message that starts "kernels:"; they are programmer errors.
type Set struct {
	// Name is "go", "scalar", "avx2", "avxvnni", "avx512vnni256", "avx512vnni" or "neon".
	Name string

	// Quantize writes q (len(x) values, then zeros to len(q)) and sums (one per
	// group of x) and returns the scale a = max|x|/127 with q = roundHalfToEven(x/a),
	// kept within ±127 where a is subnormal. If a is zero or not finite q is all zero.
	Quantize func(q []int8, sums []int32, x []float32, group int) float32
	// RMSNormQuantize is RMSNorm into norm, then Quantize of norm. norm may be x.
	RMSNormQuantize func(q []int8, sums []int32, norm, x, weight []float32, eps float32, group int) float32

	// TernaryGEMV computes dst[r] = (a·Gain)·Σ_g s[r,g]·Σ_{k∈g} t[r,k]·q[k] for rows
	// r0 ≤ r < r1 of token 0 of x: exact int32 inside a group, float32 FMA from 0
	// over ascending g, multiplied last. dst is [Rows]; r0 is a multiple of 16,
	// r1 too or Rows.
	TernaryGEMV func(dst []float32, w *Ternary, x *Act, r0, r1 int)
	// TernaryGEMM is TernaryGEMV for every token of x: dst[t*ldd+r]. scratch has
	// at least GEMMScratch(x.N, x.Cols) bytes and belongs to one caller.
	TernaryGEMM func(dst []float32, ldd int, w *Ternary, x *Act, r0, r1 int, scratch []byte)

	// DenseGEMV computes dst[r] = Σ_k w[r,k]·x[k] for r0 ≤ r < r1 in the canonical order.
	DenseGEMV func(dst []float32, w *Dense, x []float32, r0, r1 int)
	// DenseGEMM is DenseGEMV for n vectors: dst[t*ldd+r] from x[t*ldx:].
	DenseGEMM func(dst []float32, ldd int, w *Dense, x []float32, ldx, n, r0, r1 int)
	// DenseRow writes row r of w to dst [Cols].
	DenseRow func(dst []float32, w *Dense, r int)

	// Q8GEMV computes dst[r] = a·Σ_b d[r,b]·Σ_{k∈b} w[r,k]·q[k] for rows r0 ≤ r < r1 of
	// token 0 of x, with a Q8_0 matrix of blocks b of 32 columns and scales d. Lane l
	// of eight goes over b, ascending from 0, by fma(d, p, lane) with p the exact sum
	// over columns 4l..4l+3 of the block; then lanes 4 apart are added, 2, and 1, and
	// the scale a = x.Scale is multiplied last. w may be -128, q is within ±127, as
	// Quantize leaves it. x.Group and x.Sums are not read.
	Q8GEMV func(dst []float32, w *Dense, x *Act, r0, r1 int)
	// Q8GEMM is Q8GEMV for every token of x: dst[t*ldd+r].
	Q8GEMM func(dst []float32, ldd int, w *Dense, x *Act, r0, r1 int)

	// RMSNorm computes dst = x / sqrt(mean(x²)+eps) · weight. dst may be x.
	// A nil weight means all ones.
	RMSNorm func(dst, x, weight []float32, eps float32)
	// Add computes dst = x + y.
	Add func(dst, x, y []float32)
	// Axpy computes dst = fma(a, x, dst).
	Axpy func(dst []float32, a float32, x []float32)
	// Scale computes dst = a·x.
	Scale func(dst []float32, a float32, x []float32)
	// SwiGLU computes dst = silu(gate)·up. dst may be gate.
	SwiGLU func(dst, gate, up []float32)
	// ReLU2GLU computes dst = max(gate,0)²·up. dst may be gate.
	ReLU2GLU func(dst, gate, up []float32)
	// ReLU2 computes dst = max(x,0)². dst may be x.
	ReLU2 func(dst, x []float32)
	// Sigmoid computes dst = 1/(1+exp(-x)). dst may be x.
	Sigmoid func(dst, x []float32)
	// Softcap computes dst = c·tanh(x/c). dst may be x.
	Softcap func(dst []float32, c float32, x []float32)
	// Softmax computes dst = exp(x-max)/Σexp(x-max). dst may be x.
	Softmax func(dst, x []float32)
	// LogSumExp is log Σ exp(x), by way of the maximum.
	LogSumExp func(x []float32) float32
	// ArgMax is the index of the largest value, the lowest of equals. NaN never wins.
	ArgMax func(x []float32) int
	// TopK writes the indices of the len(dst) largest values of x, largest first,
	// the lower index first among equals. NaN sorts last.
	TopK func(dst []int32, x []float32)

	// RoPE rotates heads vectors of length headDim in x, in place, by the angles whose
	// cosines and sines are given ([rotary/2] each, the row of one position of a
	// table by RoPETable). The first 2·len(cos) elements of a head are rotated; with
	// interleaved false the pairs are (i, i+rotary/2), with true (2i, 2i+1).
	RoPE func(x []float32, heads, headDim int, cos, sin []float32, interleaved bool)

	// KVStore writes one position's keys and values, [Heads*HeadDim] each.
	KVStore func(kv *KV, pos int, k, v []float32)
	// Attention writes, for every query of a and heads h0 ≤ h < h1, the softmax-weighted
	// values to dst[i*ldd+h*HeadDim:]; the query is q[i*ldq+h*HeadDim:]. scratch has at
	// least AttentionScratch(HeadDim) bytes and belongs to one caller.
	Attention func(dst []float32, ldd int, q []float32, ldq int, kv *KV, a Query, h0, h1 int, scratch []byte)

	// MatMul computes rows r0 ≤ r < r1 of the product p of a and b, in float32:
	// dst[r*ldd+j] = Σ_k a[r,k]·b[k,j] by FMA over ascending k, from 0 or, with p.Add,
	// from what dst holds. dst overlaps neither a nor b. scratch has at least
	// MatMulScratch() bytes and belongs to one caller.
	MatMul func(dst []float32, ldd int, a, b Operand, p Product, r0, r1 int, scratch []byte)
	// MatMulBF16 is MatMul of the operands rounded to bfloat16 (halves to even), summed
	// in float32. A CPU with a bfloat16 dot product adds two products at a time and
	// takes subnormal numbers for zero, so its bits differ from those of others; on one
	// machine, and for any split of the rows, they are always the same.
	MatMulBF16 func(dst []float32, ldd int, a, b Operand, p Product, r0, r1 int, scratch []byte)

	SetBackward
}
