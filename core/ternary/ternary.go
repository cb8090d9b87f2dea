package ternary

import (
	"errors"
	"fmt"

	"github.com/architehc/nanochat/kernels"
)

const tileBytes = 64

// ErrNotFinite is wrapped by Quantize for weights that are NaN or infinite, or so
// large that half precision cannot hold their scale.
var ErrNotFinite = errors.New("ternary: not finite")

// New returns a matrix of zero trits with zero scales and gain 1. group is a
// multiple of 16, or 0 or cols for one scale per row.
func New(rows, cols, group int) (*kernels.Ternary, error) {
	if group == 0 {
		group = cols
	}
	w := &kernels.Ternary{Rows: rows, Cols: cols, Group: group, Gain: 1}
	if err := checkShape(w); err != nil {
		return nil, err
	}
	w.Tiles = kernels.AlignedBytes(w.Blocks() * w.ColTiles() * tileBytes)
	for i := range w.Tiles {
		w.Tiles[i] = kernels.EmptyTile
	}
	w.Scales = make([]uint16, w.Blocks()*w.Groups()*kernels.TileSide)
	return w, nil
}

// Quantize quantises w, [rows, cols] row by row, as the package comment defines.
// group is as in New.
func Quantize(w []float32, rows, cols, group int) (*kernels.Ternary, error) {
	dst, err := New(rows, cols, group)
	if err != nil {
		return nil, err
	}
	if len(w) != rows*cols {
		return nil, fmt.Errorf("ternary: matrix [%d, %d] has %d values, want %d", rows, cols, len(w), rows*cols)
	}
	if err := QuantizeRows(dst, w, 0, rows); err != nil {
		return nil, err
	}
	return dst, nil
}

// QuantizeRows quantises rows r0 ≤ r < r1 of w, [dst.Rows, dst.Cols], into dst.
// r0 is a multiple of 16, r1 too or dst.Rows. Calls with disjoint rows may run at
// the same time.
func QuantizeRows(dst *kernels.Ternary, w []float32, r0, r1 int) error {
	if err := checkRange(dst, len(w), r0, r1); err != nil {
		return err
	}
	if bad := kernels.Best().QuantizeTernary(dst, w, r0, r1); bad >= 0 {
		r, g := bad/dst.Groups(), bad%dst.Groups()
		return fmt.Errorf("%w: row %d, columns from %d: mean magnitude cannot be a half-precision scale", ErrNotFinite, r, g*dst.Group)
	}
	return nil
}

// FromTrits packs trits, [rows, cols] with values -1, 0 and 1, and half-precision
// scales, [rows][ceil(cols/group)]. group is as in New.
func FromTrits(trits []int8, scales []uint16, rows, cols, group int) (*kernels.Ternary, error) {
	w, err := New(rows, cols, group)
	if err != nil {
		return nil, err
	}
	groups, colTiles := w.Groups(), w.ColTiles()
	if len(trits) != rows*cols || len(scales) != rows*groups {
		return nil, fmt.Errorf("ternary: matrix [%d, %d] group %d needs %d trits and %d scales, got %d and %d",
			rows, cols, w.Group, rows*cols, rows*groups, len(trits), len(scales))
	}
	for i, t := range trits {
		if t < -1 || t > 1 {
			return nil, fmt.Errorf("ternary: row %d, column %d: %d is not a trit", i/cols, i%cols, t)
		}
	}
	var buf [kernels.TileSide * kernels.TileSide]int8
	for b := range w.Blocks() {
		rows := min(kernels.TileSide, rows-b*kernels.TileSide)
		for r := range rows {
			for g := range groups {
				w.Scales[(b*groups+g)*kernels.TileSide+r] = scales[(b*kernels.TileSide+r)*groups+g]
			}
		}
		for c := range colTiles {
			clear(buf[:])
			c0 := c * kernels.TileSide
			for r := range rows {
				copy(buf[r*kernels.TileSide:], trits[(b*kernels.TileSide+r)*cols+c0:][:min(kernels.TileSide, cols-c0)])
			}
			kernels.PackTile(tile(w.Tiles, b*colTiles+c), &buf)
		}
	}
	return w, CheckScales(w)
}

// Trits writes the trits of w to dst, [w.Rows, w.Cols] row by row.
func Trits(dst []int8, w *kernels.Ternary) error {
	if err := checkRange(w, len(dst), 0, w.Rows); err != nil {
		return err
	}
	var buf [kernels.TileSide * kernels.TileSide]int8
	for b := range w.Blocks() {
		for c := range w.ColTiles() {
			kernels.UnpackTile(&buf, tile(w.Tiles, b*w.ColTiles()+c))
			c0 := c * kernels.TileSide
			n := min(kernels.TileSide, w.Cols-c0)
			for r := range min(kernels.TileSide, w.Rows-b*kernels.TileSide) {
				copy(dst[(b*kernels.TileSide+r)*w.Cols+c0:], buf[r*kernels.TileSide:][:n])
			}
		}
	}
	return nil
}

// RowScales writes the half-precision scales of w to dst in row order,
// [w.Rows][w.Groups()].
func RowScales(dst []uint16, w *kernels.Ternary) error {
	groups := w.Groups()
	if len(dst) != w.Rows*groups {
		return fmt.Errorf("ternary: %d scales do not hold [%d, %d]", len(dst), w.Rows, groups)
	}
	for r := range w.Rows {
		for g := range groups {
			dst[r*groups+g] = w.Scales[(r/kernels.TileSide*groups+g)*kernels.TileSide+r%kernels.TileSide]
		}
	}
	return nil
}

// Dequantize writes (t·s)·gain for every weight of w to dst, [w.Rows, w.Cols].
func Dequantize(dst []float32, w *kernels.Ternary) error {
	if err := checkRange(w, len(dst), 0, w.Rows); err != nil {
		return err
	}
	for r := range w.Rows {
		if err := DequantizeRow(dst[r*w.Cols:(r+1)*w.Cols], w, r); err != nil {
			return err
		}
	}
	return nil
}

func tile(tiles []byte, i int) *[tileBytes]byte { return (*[tileBytes]byte)(tiles[i*tileBytes:]) }

// checkRange checks the shape of w, the length n of its float or trit twin, and a
// range of rows.
func checkRange(w *kernels.Ternary, n, r0, r1 int) error {
	if err := checkSizes(w); err != nil {
		return err
	}
	if n != w.Rows*w.Cols {
		return fmt.Errorf("ternary: %d values do not hold [%d, %d]", n, w.Rows, w.Cols)
	}
	if r0 < 0 || r1 < r0 || r1 > w.Rows || r0%kernels.TileSide != 0 || r1%kernels.TileSide != 0 && r1 != w.Rows {
		return fmt.Errorf("ternary: rows %d to %d of %d are not whole blocks of %d", r0, r1, w.Rows, kernels.TileSide)
	}
	return nil
}

// DequantizeRow writes (t·s)·gain for row r of w to dst, [w.Cols].
func DequantizeRow(dst []float32, w *kernels.Ternary, r int) error {
	if r < 0 || r >= w.Rows || len(dst) != w.Cols {
		return fmt.Errorf("ternary: row %d into %d values of a matrix [%d, %d]", r, len(dst), w.Rows, w.Cols)
	}
	block, lane := r/kernels.TileSide, r%kernels.TileSide
	for c := range w.ColTiles() {
		t := tile(w.Tiles, block*w.ColTiles()+c)
		for k := c * kernels.TileSide; k < min((c+1)*kernels.TileSide, w.Cols); k++ {
			i, shift := kernels.TileIndex(lane, k%kernels.TileSide)
			s := kernels.F16ToF32(w.Scales[(block*w.Groups()+k/w.Group)*kernels.TileSide+lane])
			dst[k] = float32(float32(int(t[i]>>shift&3)-1)*s) * w.Gain
		}
	}
	return nil
}
