package gguf

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzParse: what Parse accepts can be written and reads back the same; what it
// refuses is refused with a FormatError inside the file.
//
// The long run is go test ./core/gguf -fuzz FuzzParse -fuzztime 10000000x.
func FuzzParse(f *testing.F) {
	for _, a := range attacks() {
		if len(a.b) < 4096 {
			f.Add(a.b)
		}
	}
	f.Add(writeSample(f, WriteOptions{}))
	f.Add(written(f, nil, nil, WriteOptions{Alignment: 8}))
	f.Add(head(2, 1).key("k", TypeArray).list(TypeArray, 1).list(TypeFloat32, 1).u32(0x7fa00000).
		tensor("b", I2_S, 64, 64, 2).tensor("a", F32, 0, 2).pad(32, 128).b)
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Parse("f", b)
		if err != nil {
			var fe *FormatError
			if !errors.As(err, &fe) || fe.Offset < 0 || fe.Offset > int64(len(b)) {
				t.Fatalf("error %v of %d bytes", err, len(b))
			}
			return
		}
		var sources []Source
		for _, x := range file.Tensors {
			sources = append(sources, FromBytes(x.Name, x.Type, x.Dims, x.Data))
		}
		again, err := Parse("g", written(t, file.Meta, sources, WriteOptions{Alignment: int(file.Alignment)}))
		require.NoError(t, err)
		equalFiles(t, file, again)
		require.NoError(t, again.VerifyChecksum(t.Context(), nil))
	})
}

// FuzzCodec: any bytes dequantise without a panic, and values that Quantize
// makes of them dequantise to finite numbers.
func FuzzCodec(f *testing.F) {
	f.Add(uint8(Q6_K), make([]byte, 210))
	f.Add(uint8(I2_S), make([]byte, 64))
	f.Fuzz(func(t *testing.T, typ uint8, b []byte) {
		n, size := Type(typ).BlockSize()
		if n == 0 {
			return
		}
		if Type(typ) == I2_S && len(b) >= 32 {
			b = b[:len(b)/32*32]
			_ = Dequantize(make([]float32, (len(b)-32)/size*n), I2_S, b)
			return
		}
		values := make([]float32, len(b)/size*n)
		if err := Dequantize(values, Type(typ), b[:len(b)/size*size]); err != nil || !CanQuantize(Type(typ)) {
			return
		}
		out := make([]byte, len(b)/size*size)
		if Quantize(out, Type(typ), values) != nil {
			return
		}
		again := make([]float32, len(values))
		require.NoError(t, Dequantize(again, Type(typ), out))
	})
}
