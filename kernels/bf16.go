package kernels

import (
	"fmt"
	"math"
)

func goBF16(dst []uint16, a float32, x []float32) {
	checkSame("BF16", len(dst), len(x))
	for i, v := range x {
		dst[i] = F32ToBF16(a * v)
	}
}

func goBF16FromI8(dst []uint16, q []int8) {
	checkSame("BF16FromI8", len(dst), len(q))
	for i, v := range q {
		dst[i] = uint16(math.Float32bits(float32(v)) >> 16)
	}
}

// checkTiles panics unless w is well formed.
func checkTiles(w *Ternary) {
	if w.Rows <= 0 || w.Cols <= 0 || w.Cols > maxCols || w.Group <= 0 || w.Group != w.Cols && w.Group%TileSide != 0 {
		panic(fmt.Sprintf("kernels: ternary matrix of %d rows and %d columns in groups of %d", w.Rows, w.Cols, w.Group))
	}
	checkLen("Tiles", len(w.Tiles), w.Blocks()*w.ColTiles()*64)
	checkLen("Scales", len(w.Scales), w.Blocks()*w.Groups()*TileSide)
}

func checkTernaryBF16(dst []uint16, ldd int, w *Ternary, r0, r1 int) {
	checkTiles(w)
	if r0 < 0 || r0 > r1 || r1 > w.Rows {
		panic(fmt.Sprintf("kernels: rows %d to %d of %d", r0, r1, w.Rows))
	}
	checkRows("TernaryBF16", "dst", len(dst), ldd, r1-r0, w.Cols)
}

func goTernaryBF16(dst []uint16, ldd int, w *Ternary, r0, r1 int) {
	checkTernaryBF16(dst, ldd, w, r0, r1)
	for r := r0; r < r1; r++ {
		block, lane := r/TileSide, r%TileSide
		row := dst[(r-r0)*ldd:][:w.Cols]
		for k := range row {
			i, shift := TileIndex(lane, k%TileSide)
			code := w.Tiles[(block*w.ColTiles()+k/TileSide)*64+i] >> shift & 3
			s := F16ToF32(w.Scales[(block*w.Groups()+k/w.Group)*TileSide+lane])
			row[k] = F32ToBF16(float32(float32(int(code)-1)*s) * w.Gain)
		}
	}
}

// minScale is 2^-14, the smallest normal half-precision number.
const minScale = 0x0400

func checkQuantizeTernary(w *Ternary, x []float32, r0, r1 int) {
	checkTiles(w)
	if r0 < 0 || r0 > r1 || r1 > w.Rows || r0%TileSide != 0 || r1%TileSide != 0 && r1 != w.Rows {
		panic(fmt.Sprintf("kernels: rows %d to %d of %d: not on blocks of %d", r0, r1, w.Rows, TileSide))
	}
	checkLen("x", len(x), r1*w.Cols)
}

func goQuantizeTernary(w *Ternary, x []float32, r0, r1 int) int {
	checkQuantizeTernary(w, x, r0, r1)
	groups, colTiles := w.Groups(), w.ColTiles()
	for b := r0 / TileSide; b*TileSide < r1; b++ {
		rows := min(TileSide, r1-b*TileSide)
		scales := w.Scales[b*groups*TileSide:][:groups*TileSide]
		for r := range rows {
			row := x[(b*TileSide+r)*w.Cols:][:w.Cols]
			for g := range groups {
				s := meanMagnitude(row[g*w.Group : min((g+1)*w.Group, w.Cols)])
				if s >= 0x7c00 {
					return (b*TileSide+r)*groups + g
				}
				scales[g*TileSide+r] = max(s, minScale)
			}
		}
		for c := range colTiles {
			var trits [TileSide * TileSide]int8
			c0 := c * TileSide
			for r := range rows {
				half := F16ToF32(scales[c0/w.Group*TileSide+r]) / 2
				for i, v := range x[(b*TileSide+r)*w.Cols+c0:][:min(TileSide, w.Cols-c0)] {
					trits[r*TileSide+i] = trit(v, half)
				}
			}
			PackTile((*[64]byte)(w.Tiles[(b*colTiles+c)*64:]), &trits)
		}
	}
	return -1
}

// trit is clamp(roundHalfToEven(x/s), -1, 1) for half = s/2 > 0. A quotient of
// exactly one half rounds to 0; the float32 quotient exceeds one half exactly if
// x exceeds s/2, because s has 11 significant bits.
func trit(x, half float32) int8 {
	switch {
	case x > half:
		return 1
	case x < -half:
		return -1
	}
	return 0
}

// meanMagnitude is mean|x| in half precision.
func meanMagnitude(x []float32) uint16 {
	var s lanes
	for i, v := range x {
		s[i&15] += math.Float32frombits(math.Float32bits(v) &^ (1 << 31))
	}
	return F32ToF16(s.sum() / float32(len(x)))
}
