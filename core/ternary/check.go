package ternary

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/architehc/nanochat/kernels"
)

// maxSide bounds rows and columns so that sizes cannot overflow and a group's
// int32 sum is exact.
const (
	maxRows = 1 << 28
	maxCols = 1 << 18
)

// Check reports what makes w unusable: wrong sizes, the invalid code 3, padding
// that is not zero, scales that are not finite, or a gain that is not.
func Check(w *kernels.Ternary) error {
	if err := checkSizes(w); err != nil {
		return err
	}
	if err := CheckScales(w); err != nil {
		return err
	}
	return CheckTiles(w, 0, w.Blocks())
}

// CheckScales is the part of Check that reads the scales and the gain.
func CheckScales(w *kernels.Ternary) error {
	if err := checkSizes(w); err != nil {
		return err
	}
	groups := w.Groups()
	for i, s := range w.Scales {
		if s&0x7c00 == 0x7c00 {
			b, g, r := i/kernels.TileSide/groups, i/kernels.TileSide%groups, i%kernels.TileSide
			return fmt.Errorf("ternary: scale of row %d, group %d is not finite", b*kernels.TileSide+r, g)
		}
	}
	if g := float64(w.Gain); math.IsNaN(g) || math.IsInf(g, 0) {
		return fmt.Errorf("ternary: gain %v is not finite", w.Gain)
	}
	return nil
}

// CheckTiles is the part of Check that reads the tiles of blocks b0 ≤ b < b1. Calls
// may run at the same time.
func CheckTiles(w *kernels.Ternary, b0, b1 int) error {
	if err := checkSizes(w); err != nil {
		return err
	}
	colTiles := w.ColTiles()
	size := colTiles * tileBytes
	for b := max(b0, 0); b < min(b1, w.Blocks()); b++ {
		block := w.Tiles[b*size : (b+1)*size]
		if invalid(block) {
			for c := range colTiles {
				if kernels.TileHasInvalid(tile(block, c)) {
					return fmt.Errorf("ternary: tile of rows from %d, columns from %d holds the invalid code 3",
						b*kernels.TileSide, c*kernels.TileSide)
				}
			}
		}
		if err := checkPadding(w, block, b); err != nil {
			return err
		}
	}
	return nil
}

// invalid reports whether any 2-bit code in b is 3. len(b) is a multiple of 32.
func invalid(b []byte) bool {
	var bad uint64
	for ; len(b) >= 32; b = b[32:] {
		x0, x1 := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		x2, x3 := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
		bad |= x0&(x0>>1) | x1&(x1>>1) | x2&(x2>>1) | x3&(x3>>1)
	}
	return bad&0x5555555555555555 != 0
}

// checkPadding checks the codes beyond the last row and column of block b.
func checkPadding(w *kernels.Ternary, block []byte, b int) error {
	for c := range w.ColTiles() {
		if padded(w, b, c) && clearTile(w, tile(block, c), b, c) != *tile(block, c) {
			return fmt.Errorf("ternary: padding of the tile of rows from %d, columns from %d is not zero",
				b*kernels.TileSide, c*kernels.TileSide)
		}
	}
	return nil
}

// ClearPadding sets the trits beyond the last row and column of blocks b0 ≤ b < b1
// to zero.
func ClearPadding(w *kernels.Ternary, b0, b1 int) {
	colTiles := w.ColTiles()
	for b := b0; b < b1; b++ {
		for c := range colTiles {
			if padded(w, b, c) {
				t := tile(w.Tiles, b*colTiles+c)
				*t = clearTile(w, t, b, c)
			}
		}
	}
}

// padded reports whether tile c of block b reaches beyond the matrix.
func padded(w *kernels.Ternary, b, c int) bool {
	return (b+1)*kernels.TileSide > w.Rows || (c+1)*kernels.TileSide > w.Cols
}

// clearTile is t, tile c of block b, with zero trits in its padding.
func clearTile(w *kernels.Ternary, t *[tileBytes]byte, b, c int) [tileBytes]byte {
	out := *t
	for r := range kernels.TileSide {
		for k := range kernels.TileSide {
			if b*kernels.TileSide+r >= w.Rows || c*kernels.TileSide+k >= w.Cols {
				i, shift := kernels.TileIndex(r, k)
				out[i] = out[i]&^(3<<shift) | 1<<shift
			}
		}
	}
	return out
}

func checkShape(w *kernels.Ternary) error {
	switch {
	case w.Rows < 1 || w.Rows > maxRows || w.Cols < 1 || w.Cols > maxCols:
		return fmt.Errorf("ternary: shape [%d, %d] is not within [1 to %d, 1 to %d]", w.Rows, w.Cols, maxRows, maxCols)
	case w.Group < 1 || w.Group%kernels.TileSide != 0 && w.Group != w.Cols:
		return fmt.Errorf("ternary: group %d is neither a multiple of %d nor the %d columns", w.Group, kernels.TileSide, w.Cols)
	}
	return nil
}

func checkSizes(w *kernels.Ternary) error {
	if err := checkShape(w); err != nil {
		return err
	}
	if n := w.Blocks() * w.ColTiles() * tileBytes; len(w.Tiles) != n {
		return fmt.Errorf("ternary: shape [%d, %d] needs %d bytes of tiles, got %d", w.Rows, w.Cols, n, len(w.Tiles))
	}
	if n := w.Blocks() * w.Groups() * kernels.TileSide; len(w.Scales) != n {
		return fmt.Errorf("ternary: shape [%d, %d] group %d needs %d scales, got %d", w.Rows, w.Cols, w.Group, n, len(w.Scales))
	}
	return nil
}
