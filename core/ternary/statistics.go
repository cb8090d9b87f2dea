package ternary

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/architehc/nanochat/kernels"
)

// Counts is the number of trits of each value.
type Counts struct {
	Minus, Zero, Plus int
}

// Total is the number of all trits.
func (c Counts) Total() int { return c.Minus + c.Zero + c.Plus }

// Add returns the sum of both.
func (c Counts) Add(d Counts) Counts {
	return Counts{c.Minus + d.Minus, c.Zero + d.Zero, c.Plus + d.Plus}
}

// ZeroFraction is the share of zeros; 0 without trits.
func (c Counts) ZeroFraction() float64 {
	if c.Total() == 0 {
		return 0
	}
	return float64(c.Zero) / float64(c.Total())
}

// low masks the low bits of the 32 codes in a word.
const low = 0x5555555555555555

// CountTrits counts the trits of w, padding left out. w is valid (Check).
func CountTrits(w *kernels.Ternary) Counts {
	var zero, plus int
	for t := w.Tiles; len(t) >= 8; t = t[8:] {
		x := binary.LittleEndian.Uint64(t)
		zero += bits.OnesCount64(x & low) // code 1
		plus += bits.OnesCount64(x >> 1 & low)
	}
	padding := len(w.Tiles)*4 - w.Rows*w.Cols
	return Counts{Minus: len(w.Tiles)*4 - zero - plus, Zero: zero - padding, Plus: plus}
}

// Flips counts the trits in which a and b differ, and all trits. It is an error if
// the shapes differ. Only the tiles are read: to compare with an earlier state keep
// a copy of them.
func Flips(a, b *kernels.Ternary) (changed, total int, err error) {
	if a.Rows != b.Rows || a.Cols != b.Cols || len(a.Tiles) != len(b.Tiles) {
		return 0, 0, fmt.Errorf("ternary: a matrix [%d, %d] cannot be compared with [%d, %d]", a.Rows, a.Cols, b.Rows, b.Cols)
	}
	x, y := a.Tiles, b.Tiles
	for ; len(x) >= 8; x, y = x[8:], y[8:] {
		d := binary.LittleEndian.Uint64(x) ^ binary.LittleEndian.Uint64(y)
		changed += bits.OnesCount64((d | d>>1) & low)
	}
	return changed, a.Rows * a.Cols, nil
}

// DeadRows counts the rows whose trits are all zero: outputs that are 0 for every
// input.
func DeadRows(w *kernels.Ternary) int {
	dead, size := 0, w.ColTiles()*tileBytes
	for b := range w.Blocks() {
		block := w.Tiles[b*size : (b+1)*size]
		var alive [kernels.TileSide]uint32
		for ; len(block) >= tileBytes; block = block[tileBytes:] {
			for r := range alive { // bytes 4r to 4r+3 of a tile are row r
				alive[r] |= binary.LittleEndian.Uint32(block[4*r:]) ^ (low & math.MaxUint32)
			}
		}
		for _, a := range alive[:min(kernels.TileSide, w.Rows-b*kernels.TileSide)] {
			if a == 0 {
				dead++
			}
		}
	}
	return dead
}

// ScaleRange is the smallest, the median (of two middle ones the lower) and the
// largest scale of w, with its gain.
func ScaleRange(w *kernels.Ternary) (smallest, median, largest float32) {
	all := make([]uint16, w.Rows*w.Groups())
	if err := RowScales(all, w); err != nil || len(all) == 0 {
		return 0, 0, 0
	}
	values := make([]float32, len(all))
	for i, s := range all {
		values[i] = kernels.F16ToF32(s) * w.Gain
	}
	slices.Sort(values)
	return values[0], values[(len(values)-1)/2], values[len(values)-1]
}

// NearThreshold is the share of the latents, [w.Rows, w.Cols] row by row, whose
// magnitude is within width scales of the half scale at which the trit changes;
// w is what Quantize made of them.
func NearThreshold(w *kernels.Ternary, latents []float32, width float32) (float64, error) {
	if err := checkRange(w, len(latents), 0, w.Rows); err != nil {
		return 0, err
	}
	near, groups := 0, w.Groups()
	for r := range w.Rows {
		row := latents[r*w.Cols : (r+1)*w.Cols]
		for g := range groups {
			s := kernels.F16ToF32(w.Scales[(r/kernels.TileSide*groups+g)*kernels.TileSide+r%kernels.TileSide])
			for _, v := range row[g*w.Group : min((g+1)*w.Group, w.Cols)] {
				if d := max(v, -v) - s/2; max(d, -d) <= width*s {
					near++
				}
			}
		}
	}
	return float64(near) / float64(len(latents)), nil
}
