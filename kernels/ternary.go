package kernels

import (
	"encoding/binary"
	"math"
)

// maxCols keeps every int32 sum of a whole-row group exact, in the kernels that
// accumulate a code without shifting it down (×64) too.
const maxCols = 1 << 18

// TileIndex is the place of the code of (row, col) inside a tile:
// code = tile[b]>>shift&3. row and col are within the tile.
func TileIndex(row, col int) (b int, shift uint) {
	return 4*row + col%4, uint(col / 4 * 2)
}

// PackTile writes one tile from trits, which is [TileSide][TileSide], row by row,
// with values -1, 0 and 1.
func PackTile(tile *[64]byte, trits *[TileSide * TileSide]int8) {
	*tile = [64]byte{}
	for r := range TileSide {
		for c := range TileSide {
			b, shift := TileIndex(r, c)
			tile[b] |= byte(trits[r*TileSide+c]+1) & 3 << shift
		}
	}
}

// UnpackTile is the inverse of PackTile. The invalid code 3 becomes 2.
func UnpackTile(trits *[TileSide * TileSide]int8, tile *[64]byte) {
	for r := range TileSide {
		for c := range TileSide {
			b, shift := TileIndex(r, c)
			trits[r*TileSide+c] = int8(tile[b]>>shift&3) - 1
		}
	}
}

// TileHasInvalid reports whether any code of the tile is 3.
func TileHasInvalid(tile *[64]byte) bool {
	var bad uint64
	for i := 0; i < len(tile); i += 8 {
		x := binary.LittleEndian.Uint64(tile[i:])
		bad |= x & (x >> 1) & 0x5555555555555555
	}
	return bad != 0
}

// EmptyTile is a tile of zero trits: what padding holds.
const EmptyTile = 0x55

// ActStride is the length of one token's quantised values in Act.Q.
func ActStride(cols int) int { return (cols + 63) &^ 63 }

// NewAct is room for n quantised vectors of length cols that meet matrices with
// the given group length.
func NewAct(n, cols, group int) *Act {
	stride := ActStride(cols)
	return &Act{
		N: n, Cols: cols, Stride: stride, Group: group,
		Q:     make([]int8, n*stride),
		Scale: make([]float32, n),
		Sums:  make([]int32, n*((cols+group-1)/group)),
	}
}

// Groups is the number of sums of one token.
func (x *Act) Groups() int { return (x.Cols + x.Group - 1) / x.Group }

// Set quantises v into token t.
func (x *Act) Set(s *Set, t int, v []float32) {
	g := x.Groups()
	x.Scale[t] = s.Quantize(x.Q[t*x.Stride:(t+1)*x.Stride], x.Sums[t*g:(t+1)*g], v[:x.Cols], x.Group)
}

// GEMMScratch is the scratch TernaryGEMM needs for n tokens of length cols, in bytes.
func GEMMScratch(n, cols int) int {
	stride := ActStride(cols)
	// The tokens once more in the order of the kernel, partial results of two
	// blocks of rows, the tokens' sums (at most one per 16 columns), their gains,
	// and slack to align to 64 bytes.
	return n*stride + n*2*TileSide*4 + n*(stride/16)*4 + n*4 + 64
}

func ternaryGo(s *Set) {
	s.Quantize = quantizeGo
	s.TernaryGEMV = gemvGo
	s.TernaryGEMM = gemmGo
}

func quantizeGo(q []int8, sums []int32, x []float32, group int) float32 {
	checkQuantize(q, sums, x, group)
	// Non-negative floats, infinities and NaNs order like their bits.
	var top uint32
	for _, v := range x {
		top = max(top, math.Float32bits(v)&^(1<<31))
	}
	a := math.Float32frombits(top) / 127
	clear(q)
	clear(sums)
	if a == 0 || a-a != 0 {
		return a
	}
	for i, v := range x {
		// A subnormal a may be rounded down so far that x/a passes 127.
		r := math.RoundToEven(float64(v / a))
		q[i] = int8(min(max(r, -127), 127))
		sums[i/group] += int32(q[i])
	}
	return a
}

func gemvGo(dst []float32, w *Ternary, x *Act, r0, r1 int) {
	checkTernary(w, x, r0, r1)
	checkLen("dst", len(dst), w.Rows)
	ternaryRows(dst, w, x, 0, r0, r1)
}

func gemmGo(dst []float32, ldd int, w *Ternary, x *Act, r0, r1 int, scratch []byte) {
	checkTernary(w, x, r0, r1)
	checkGEMM(dst, ldd, w, x, scratch)
	for t := range x.N {
		ternaryRows(dst[t*ldd:], w, x, t, r0, r1)
	}
}

// ternaryRows computes rows r0..r1 of token t of x.
func ternaryRows(dst []float32, w *Ternary, x *Act, t, r0, r1 int) {
	colTiles, groups := w.ColTiles(), w.Groups()
	q := x.Q[t*x.Stride:]
	scale := x.Scale[t] * w.Gain
	for r := r0; r < r1; r++ {
		block, lane := r/TileSide, r%TileSide
		var sum float32
		for g := range groups {
			var dot int32
			for k := g * w.Group; k < min((g+1)*w.Group, w.Cols); k++ {
				b, shift := TileIndex(lane, k%TileSide)
				code := w.Tiles[(block*colTiles+k/TileSide)*64+b] >> shift & 3
				dot += (int32(code) - 1) * int32(q[k])
			}
			s := F16ToF32(w.Scales[(block*groups+g)*TileSide+lane])
			sum = FMA32(float32(dot), s, sum)
		}
		dst[r] = scale * sum
	}
}
