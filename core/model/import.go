package model

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
)

// importLinear makes a projection of a foreign tensor; gain, if not nil, is a
// factor for the whole matrix. With forceTernary float weights become ternary.
// The work on the contents runs later, with those of other tensors.
func (l *loader) importLinear(s *slot, t, gain *gguf.Tensor, forceTernary bool) error {
	if !gguf.CanDequantize(t.Type) {
		return l.f.Errorf(t, "storage type %s is not supported", t.Type)
	}
	group := 0
	blocks := t.Type == gguf.TQ1_0 || t.Type == gguf.TQ2_0
	switch {
	case blocks:
		group = 256
	case t.Type == gguf.I2_S, forceTernary:
	default:
		s.lin.dense = new(kernels.Dense)
		return l.importDense(s.lin.dense, t, s.rows, s.cols)
	}
	if l.headerOnly {
		if group == 0 {
			group = s.cols
		}
		s.lin.ternary = &kernels.Ternary{Rows: s.rows, Cols: s.cols, Group: group}
		return nil
	}
	w, err := ternary.New(s.rows, s.cols, group)
	if err != nil {
		return l.f.Errorf(t, "%v", err)
	}
	s.lin.ternary = w
	if gain != nil {
		w.Gain = gguf.View[float32](gain.Data)[0]
	}
	l.checks = append(l.checks, func() error {
		var err error
		if blocks {
			err = fromBlocks(w, t)
		} else {
			err = fromFloats(w, t)
		}
		if err == nil {
			err = ternary.CheckScales(w)
		}
		if err != nil {
			return l.f.Errorf(t, "%v", err)
		}
		return nil
	})
	return nil
}

// importDense makes w a view of t, or its values in half precision if kernels do
// not read the type.
func (l *loader) importDense(w *kernels.Dense, t *gguf.Tensor, rows, cols int) error {
	if isDense(t.Type) {
		return l.matrix(w, t, rows, cols)
	}
	if !gguf.CanDequantize(t.Type) || t.Type == gguf.I2_S {
		return l.f.Errorf(t, "storage type %s is not supported", t.Type)
	}
	if !t.Is(t.Type, uint64(cols), uint64(rows)) {
		return l.f.Errorf(t, "is %v, expected [%d %d]", t.Dims, cols, rows)
	}
	*w = kernels.Dense{Rows: rows, Cols: cols, Type: kernels.F16}
	if l.headerOnly {
		return nil
	}
	w.Data = make([]byte, 2*rows*cols)
	l.checks = append(l.checks, func() error {
		row, size := make([]float32, cols), len(t.Data)/rows
		for r := range rows {
			err := gguf.Dequantize(row, t.Type, t.Data[r*size:(r+1)*size])
			if err == nil {
				err = gguf.Quantize(w.Data[2*r*cols:2*(r+1)*cols], gguf.F16, row)
			}
			if err != nil {
				return l.f.Errorf(t, "row %d: %v", r, err)
			}
		}
		return nil
	})
	return nil
}

// errCode reports a two-bit code that is no trit.
var errCode = errors.New("holds an invalid code: a weight that is neither -1, 0 nor 1 times its scale")

// signs sets trits to the signs of values, which are d·{-1, 0, 1}.
func signs(trits []int8, values []float32, d float32) error {
	d = float32(math.Abs(float64(d)))
	for i, v := range values {
		switch {
		case v == 0:
			trits[i] = 0
		case v == d:
			trits[i] = 1
		case v == -d:
			trits[i] = -1
		default:
			return errCode
		}
	}
	return nil
}

// fromBlocks fills w from TQ1_0 or TQ2_0: 256 trits and a half scale at the end of
// each block, which it keeps as they are.
func fromBlocks(w *kernels.Ternary, t *gguf.Tensor) error {
	_, block := t.Type.BlockSize()
	groups := w.Groups()
	values := make([]float32, w.Cols)
	trits := make([]int8, kernels.TileSide*w.Cols)
	scales := make([]uint16, kernels.TileSide*groups)
	return eachBlock(w, func(r0, rows int) ([]int8, []uint16, error) {
		for r := range rows {
			data := t.Data[(r0+r)*groups*block:][:groups*block]
			if err := gguf.Dequantize(values, t.Type, data); err != nil {
				return nil, nil, err
			}
			for g := range groups {
				bits := binary.LittleEndian.Uint16(data[(g+1)*block-2:])
				if err := signs(trits[r*w.Cols+g*256:][:256], values[g*256:][:256], kernels.F16ToF32(bits)); err != nil {
					return nil, nil, fmt.Errorf("row %d %w", r0+r, err)
				}
				scales[r*groups+g] = bits &^ 0x8000
			}
		}
		return trits[:rows*w.Cols], scales[:rows*groups], nil
	})
}

// half1 is 1 in half precision.
const half1 = 0x3c00

// fromFloats fills w from the values of t: exactly if these are a scale times -1, 0
// and 1, one scale for the tensor or per group of some length, which w then has;
// else one scale for the tensor by mean magnitude. A scale for the whole tensor
// becomes part of the gain.
func fromFloats(w *kernels.Ternary, t *gguf.Tensor) error {
	values := make([]float32, w.Rows*w.Cols)
	if err := gguf.Dequantize(values, t.Type, t.Data); err != nil {
		return err
	}
	rowOf := func(r int) ([]float32, error) { return values[r*w.Cols : (r+1)*w.Cols], nil }
	d, exact := commonScale(values)
	switch {
	case t.Type == gguf.I2_S:
		d = gguf.TailScale(t.Data)
	case exact:
	default:
		if g, err := exactGroup(w.Rows, w.Cols, rowOf); err == nil {
			return fromGroups(w, g, values)
		}
		sum := 0.0
		for _, v := range values {
			sum += math.Abs(float64(v))
		}
		d = max(float32(sum/float64(len(values))), 1e-5)
		if d-d != 0 {
			return ternary.ErrNotFinite
		}
		for i, v := range values {
			values[i] = d * float32(max(-1, min(1, math.RoundToEven(float64(v/d)))))
		}
	}
	w.Gain *= d
	trits := make([]int8, kernels.TileSide*w.Cols)
	scales := make([]uint16, kernels.TileSide)
	for i := range scales {
		scales[i] = half1
	}
	return eachBlock(w, func(r0, rows int) ([]int8, []uint16, error) {
		if err := signs(trits[:rows*w.Cols], values[r0*w.Cols:][:rows*w.Cols], d); err != nil {
			return nil, nil, fmt.Errorf("rows from %d: the tensor %w", r0, err)
		}
		return trits[:rows*w.Cols], scales[:rows], nil
	})
}

// fromGroups makes w the matrix of values that are exact in groups, 0 for rows.
func fromGroups(w *kernels.Ternary, group int, values []float32) error {
	out, err := ternary.New(w.Rows, w.Cols, group)
	if err != nil {
		return err
	}
	trits := make([]int8, kernels.TileSide*w.Cols)
	scales := make([]uint16, kernels.TileSide*out.Groups())
	err = eachBlock(out, func(r0, rows int) ([]int8, []uint16, error) {
		n := rows * w.Cols
		err := exactBlock(trits[:n], scales, values[r0*w.Cols:][:n], w.Cols, out.Group)
		return trits[:n], scales[:rows*out.Groups()], err
	})
	out.Gain = w.Gain
	*w = *out
	return err
}

// exactBlock takes rows of values, a scale times -1, 0 and 1 in every group, apart
// into trits and scales.
func exactBlock(trits []int8, scales []uint16, values []float32, cols, group int) error {
	i := 0
	for r := 0; r < len(values); r += cols {
		for g := 0; g < cols; g += group {
			lo, hi := r+g, r+min(g+group, cols)
			d, _ := commonScale(values[lo:hi])
			if err := signs(trits[lo:hi], values[lo:hi], d); err != nil {
				return err
			}
			if scales[i] = kernels.F32ToF16(d); kernels.F16ToF32(scales[i]) != d {
				return fmt.Errorf("scale %v does not fit half precision", d)
			}
			i++
		}
	}
	return nil
}

// commonScale returns the magnitude of all values that are not zero, if they have
// one in common.
func commonScale(values []float32) (d float32, ok bool) {
	for _, v := range values {
		if v < 0 {
			v = -v
		}
		switch {
		case v == 0 || v == d:
		case d == 0 && v-v == 0:
			d = v
		default:
			return 0, false
		}
	}
	return d, true
}

// eachBlock fills w block by block with what of returns for its rows: trits
// [rows][Cols] and scales [rows][Groups].
func eachBlock(w *kernels.Ternary, of func(r0, rows int) (trits []int8, scales []uint16, err error)) error {
	tiles, scales := w.ColTiles()*64, w.Groups()*kernels.TileSide
	for b := range w.Blocks() {
		rows := min(kernels.TileSide, w.Rows-b*kernels.TileSide)
		t, s, err := of(b*kernels.TileSide, rows)
		if err != nil {
			return err
		}
		part, err := ternary.FromTrits(t, s, rows, w.Cols, w.Group)
		if err != nil {
			return err
		}
		copy(w.Tiles[b*tiles:(b+1)*tiles], part.Tiles)
		copy(w.Scales[b*scales:(b+1)*scales], part.Scales)
	}
	return nil
}
