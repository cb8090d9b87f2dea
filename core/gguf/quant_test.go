package gguf

import (
	"encoding/binary"
	"math"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestQuantGolden compares with ggml's reference as the Python package gguf has
// it (testdata/make_golden.py), to the last bit.
func TestQuantGolden(t *testing.T) {
	f, err := Open(filepath.Join("testdata", "quants.gguf"))
	require.NoError(t, err)
	defer f.Close()
	values := View[float32](f.Tensor("values").Data)
	for _, typ := range []Type{F16, BF16, Q8_0, Q4_0, TQ1_0, TQ2_0, Q6_K} {
		x := f.Tensor(typ.String())
		require.Equal(t, typ, x.Type)
		got := make([]float32, x.Elements())
		require.NoError(t, Dequantize(got, typ, x.Data))
		want := View[float32](f.Tensor(typ.String() + ".values").Data)
		require.Equal(t, bits32(want), bits32(got), "dequantize %s", typ)
		if CanQuantize(typ) {
			data := make([]byte, len(x.Data))
			require.NoError(t, Quantize(data, typ, values))
			require.Equal(t, x.Data, data, "quantize %s", typ)
		}
	}
}

func bits32(v []float32) []uint32 {
	out := make([]uint32, len(v))
	for i, x := range v {
		out[i] = math.Float32bits(x)
	}
	return out
}

// TestHalf checks every half, and the rounding of what lies between two.
func TestHalf(t *testing.T) {
	value := func(h uint16) float64 { // by the definition of the format
		sign := 1 - 2*float64(h>>15)
		exp, frac := int(h>>10&31), float64(h&1023)
		switch {
		case exp == 31 && frac == 0:
			return sign * math.Inf(1)
		case exp == 31:
			return math.NaN()
		case exp == 0:
			return sign * math.Ldexp(frac, -24)
		}
		return sign * math.Ldexp(1024+frac, exp-25)
	}
	for h := range 1 << 16 {
		h := uint16(h)
		want, got := value(h), f16to32(h)
		if math.IsNaN(want) {
			require.True(t, got != got)
			back := f32to16(got)
			require.Equal(t, h|0x200, back, "quiet, with its payload")
			continue
		}
		require.Equal(t, math.Float64bits(want), math.Float64bits(float64(got)))
		require.Equal(t, h, f32to16(got))
		next := h + 1
		if next&0x7fff >= 0x7c00 {
			continue
		}
		middle := float32((want + value(next)) / 2) // exact
		even := h + h&1
		require.Equal(t, even, f32to16(middle))
		require.Equal(t, h, f32to16(math.Float32frombits(math.Float32bits(middle)-1)))
		require.Equal(t, next, f32to16(math.Float32frombits(math.Float32bits(middle)+1)))
	}
	inf := float32(math.Inf(1))
	require.Equal(t, uint16(0x7bff), f32to16(65519.996))
	require.Equal(t, uint16(0x7c00), f32to16(65520))
	require.Equal(t, uint16(0xfc00), f32to16(-inf))
	require.Equal(t, uint16(0x8000), f32to16(-1e-30))
}

func TestBFloat16(t *testing.T) {
	for h := range 1 << 16 {
		h := uint16(h)
		x := bf16to32(h)
		if x != x {
			require.Equal(t, h|0x40, f32toBF16(x))
			continue
		}
		require.Equal(t, h, f32toBF16(x))
		if h&0x7fff < 0x7f80 {
			middle := math.Float32frombits(uint32(h)<<16 | 0x8000)
			require.Equal(t, h+h&1, f32toBF16(middle))
			require.Equal(t, h+1, f32toBF16(math.Float32frombits(uint32(h)<<16|0x8001)))
		}
	}
}

// TestTernaryExact: a scale times -1, 0, 1 survives the ternary types, and Q4_0,
// unchanged for every scale that is a normal half.
func TestTernaryExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scale := f16to32(uint16(rapid.IntRange(0x0400, 0x7bff).Draw(t, "scale")))
		trits := rapid.SliceOfN(rapid.IntRange(-1, 1), 512, 512).Draw(t, "trits")
		src := make([]float32, 512)
		for i, x := range trits {
			src[i] = float32(x) * scale
		}
		for _, typ := range []Type{TQ1_0, TQ2_0} {
			n, size := typ.BlockSize()
			data := make([]byte, len(src)/n*size)
			require.NoError(t, Quantize(data, typ, src))
			got := make([]float32, len(src))
			require.NoError(t, Dequantize(got, typ, data))
			require.Equal(t, src, got, typ)
		}
	})
}

// TestCodeWords decodes every byte of the ternary types.
func TestCodeWords(t *testing.T) {
	for b := range 256 {
		data := make([]byte, 66)
		dst := make([]float32, 256)
		binary.LittleEndian.PutUint16(data[64:], 0x3c00) // 1
		data[33] = byte(b)                               // elements 129, 161, 193, 225
		require.NoError(t, Dequantize(dst, TQ2_0, data))
		for k := range 4 {
			require.Equal(t, float32(b>>(2*k)&3)-1, dst[129+32*k])
		}
		data = data[:54]
		clear(data)
		binary.LittleEndian.PutUint16(data[52:], 0x3c00)
		for i := range 52 {
			data[i] = byte(b)
		}
		require.NoError(t, Dequantize(dst, TQ1_0, data))
		digits := b * 243 / 256 // the base-3 number whose fraction b is, rounded up
		for k, div := range []int{81, 27, 9, 3, 1} {
			want := float32(digits/div%3) - 1
			require.Equal(t, want, dst[32*k+5], "byte %d", b)
			require.Equal(t, want, dst[160+16*k+5])
			if k < 4 {
				require.Equal(t, want, dst[240+4*k+3])
			}
		}
	}
}

// TestI2S decodes a tensor made by hand: 128-element blocks that run on across
// rows, then the scale of the tensor.
func TestI2S(t *testing.T) {
	const n = 64 * 6 // rows of 64: a block is two rows
	want := make([]float32, n)
	data := make([]byte, n/4+32)
	for i := range want {
		code := (i*i + i/5) % 3
		want[i] = 0.75 * float32(code-1)
		data[i/128*32+i%32] |= byte(code << (6 - 2*(i%128/32)))
	}
	binary.LittleEndian.PutUint32(data[n/4:], math.Float32bits(0.75))
	size, err := Size(I2_S, []uint64{64, 6})
	require.NoError(t, err)
	require.EqualValues(t, len(data), size)
	got := make([]float32, n)
	require.NoError(t, Dequantize(got, I2_S, data))
	require.Equal(t, want, got)
	require.Equal(t, float32(0.75), TailScale(data))
}

func TestQuantRefuses(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	block := func(n int, x float32) []float32 {
		v := make([]float32, n)
		v[n-1] = x
		return v
	}
	for _, tt := range []struct {
		typ  Type
		src  []float32
		size int
		want string
	}{
		{Q8_0, block(31, 1), 34, "expected a multiple of the block of 32"},
		{Q8_0, block(32, 1), 33, "32 elements need 34 bytes, got 33"},
		{Q8_0, block(32, nan), 34, "element 31 is NaN"},
		{Q8_0, block(32, inf), 34, "element 31 is -Inf"},
		{Q8_0, block(32, 127*65520), 34, "expected less than 8.32104e+06"},
		{Q4_0, block(32, -8*65520), 18, "element 31"},
		{TQ2_0, block(256, 65520), 66, "element 255 is 65520"},
		{F16, block(1, 65520), 2, "element 0 is 65520"},
		{BF16, block(1, math.MaxFloat32), 2, "element 0"},
		{Q6_K, block(256, 1), 210, "not supported; supported are F32 F16 Q4_0 Q8_0 BF16 TQ1_0 TQ2_0"},
		{99, block(1, 1), 1, "storage type 99 is unknown"},
		{F32, nil, 0, "dimension 0 is 0"},
	} {
		require.ErrorContains(t, Quantize(make([]byte, tt.size), tt.typ, tt.src), tt.want)
	}
	require.ErrorContains(t, Dequantize(make([]float32, 32), Q4_0, make([]byte, 17)), "need 18 bytes, got 17")
	require.ErrorContains(t, Dequantize(make([]float32, 256), Q4_K, make([]byte, 144)), "supported are F32 F16 Q4_0 Q8_0 Q6_K BF16 TQ1_0 TQ2_0 I2_S")
	// The largest values that fit, and the smallest, do not become infinite or NaN.
	for _, typ := range []Type{F16, BF16, Q8_0, Q4_0, TQ1_0, TQ2_0} {
		n, size := typ.BlockSize()
		limit := float32(quantLimit(typ))
		for _, x := range []float32{math.Nextafter32(limit, 0), math.SmallestNonzeroFloat32, -1e-39, 1e-8} {
			src, data, got := block(n, x), make([]byte, size), make([]float32, n)
			require.NoError(t, Quantize(data, typ, src))
			require.NoError(t, Dequantize(got, typ, data))
			for _, y := range got {
				require.False(t, math.IsInf(float64(y), 0) || y != y, "%s of %g gives %g", typ, x, y)
			}
		}
	}
}

func BenchmarkDequantize(b *testing.B) {
	for _, typ := range []Type{F16, Q8_0, Q6_K, TQ2_0, I2_S} {
		b.Run(typ.String(), func(b *testing.B) {
			dst := make([]float32, 1<<16)
			size, _ := Size(typ, []uint64{1 << 16})
			src := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if err := Dequantize(dst, typ, src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
