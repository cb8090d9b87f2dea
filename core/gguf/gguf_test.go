package gguf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/internal/fsx"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// sampleMeta has every type of value.
func sampleMeta() []KV {
	return []KV{
		{"general.architecture", V("nanochat")},
		{"general.alignment", V(uint32(8))}, // replaced by Write
		{"a.uint8", V(uint8(255))}, {"a.int8", V(int8(-128))},
		{"a.uint16", V(uint16(65535))}, {"a.int16", V(int16(-32768))},
		{"a.uint32", V(uint32(math.MaxUint32))}, {"a.int32", V(int32(math.MinInt32))},
		{"a.uint64", V(uint64(math.MaxUint64))}, {"a.int64", V(int64(math.MinInt64))},
		{"a.float32", V(float32(0.1))}, {"a.float64", V(0.1)},
		{"a.true", V(true)}, {"a.false", V(false)}, {"a.empty", V("")},
		{"l.uint8", Array([]uint8{0, 1, 255})}, {"l.int8", Array([]int8{-1, 1})},
		{"l.uint16", Array([]uint16{1, 2, 3})}, {"l.int16", Array([]int16{-3})},
		{"l.uint32", Array([]uint32{7})}, {"l.int32", Array([]int32{-7, 8})},
		{"l.uint64", Array([]uint64{1 << 63})}, {"l.int64", Array([]int64{-1 << 63})},
		{"l.float32", Array([]float32{1.5, -2})}, {"l.float64", Array([]float64{math.Pi})},
		{"l.bool", Array([]bool{true, false})},
		{"l.string", Array([]string{"", "Ġthe", "\xff\x00", "日本"})},
		{"l.empty", Array([]float32{})},
		{"l.nested", ArrayOfArrays([]Value{Array([]uint8{1}), ArrayOfArrays([]Value{Array([]string{"x"})}), Array([]int32{})})},
	}
}

func sampleTensors() []Source {
	ramp := make([]byte, 512)
	for i := range ramp {
		ramp[i] = byte(i * 7)
	}
	return []Source{
		FromBytes("token_embd.weight", Q8_0, []uint64{32, 3}, ramp[:102]),
		FromBytes("blk.0.q.weight.t", I8, []uint64{64, 1}, ramp[:64]),
		FromBytes("blk.0.q.weight.s", F16, []uint64{16}, ramp[:32]),
		FromBytes("norm", F32, []uint64{1}, ramp[:4]),
		FromBytes("cube", I32, []uint64{2, 3, 4, 1}, ramp[:96]),
	}
}

func writeSample(t testing.TB, o WriteOptions) []byte {
	return written(t, sampleMeta(), sampleTensors(), o)
}

// written is the file Write makes, in memory.
func written(t testing.TB, meta []KV, tensors []Source, o WriteOptions) []byte {
	disk := fsx.NewCrash(1)
	require.NoError(t, Write(disk, "m.gguf", meta, tensors, o))
	b, err := fsx.ReadFile(disk.AfterPowerLoss(0, 0), "m.gguf", 1<<30)
	require.NoError(t, err)
	return b
}

// equalFiles checks that a and b say the same; the keys that Write owns may differ.
func equalFiles(t testing.TB, a, b *File) {
	strip := func(f *File) (out []KV) {
		for _, kv := range f.Meta {
			if kv.Key != alignKey && kv.Key != sumKey && kv.Key != headSumKey {
				out = append(out, kv)
			}
		}
		return out
	}
	ma, mb := strip(a), strip(b)
	require.Equal(t, len(ma), len(mb))
	for i := range ma {
		require.Equal(t, ma[i].Key, mb[i].Key)
		require.Equal(t, ma[i].Value.describe(), mb[i].Value.describe())
		// As bytes: NaN is not equal to itself.
		x, err := appendValue(nil, ma[i].Value.v, 0)
		require.NoError(t, err)
		y, err := appendValue(nil, mb[i].Value.v, 0)
		require.NoError(t, err)
		require.Equal(t, x, y, ma[i].Key)
	}
	require.Equal(t, len(a.Tensors), len(b.Tensors))
	for i := range a.Tensors {
		x, y := &a.Tensors[i], &b.Tensors[i]
		require.Equal(t, x.Name, y.Name)
		require.Equal(t, x.Type, y.Type)
		require.Equal(t, x.Dims, y.Dims)
		require.Equal(t, x.Data, y.Data)
		require.EqualValues(t, x.Size(), len(x.Data))
	}
}

func TestRoundTrip(t *testing.T) {
	for _, align := range []int{0, 8, 32, 4096} {
		b := writeSample(t, WriteOptions{Alignment: align})
		f, err := Parse("m.gguf", b)
		require.NoError(t, err)
		if align == 0 {
			align = 64
		}
		require.EqualValues(t, align, f.Alignment)
		require.EqualValues(t, 3, f.Version)
		require.Zero(t, f.DataOffset%int64(align))
		require.Zero(t, f.Size%int64(align), "the end is padded")
		for i, s := range sampleTensors() {
			var want bytes.Buffer
			require.NoError(t, s.Write(&want))
			got := f.Tensor(s.Name)
			require.Equal(t, &f.Tensors[i], got)
			require.True(t, got.Is(s.Type, s.Dims...))
			require.Equal(t, want.Bytes(), got.Data)
			require.Zero(t, got.Offset%uint64(align))
		}
		for _, kv := range sampleMeta() {
			if kv.Key == alignKey {
				continue
			}
			got, ok := f.Get(kv.Key)
			require.True(t, ok)
			require.Equal(t, kv.Value, got, kv.Key)
		}
		require.NoError(t, f.VerifyChecksum(context.Background(), nil))
		var again []Source
		for _, x := range f.Tensors {
			again = append(again, FromBytes(x.Name, x.Type, x.Dims, x.Data))
		}
		require.Equal(t, b, written(t, f.Meta, again, WriteOptions{Alignment: align}))
		require.Nil(t, f.Tensor("none"))
	}
}

// TestGolden fixes the bytes of the format. The file is made by
// go test ./core/gguf -run Golden -update.
func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "sample.gguf")
	b := writeSample(t, WriteOptions{})
	if *update {
		require.NoError(t, os.WriteFile(path, b, 0o666))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, b)
}

// TestForeignGolden reads files that the Python package gguf wrote
// (testdata/make_golden.py), versions 2 and 3.
func TestForeignGolden(t *testing.T) {
	for version, name := range map[uint32]string{2: "foreign-v2.gguf", 3: "foreign-v3.gguf"} {
		f, err := Open(filepath.Join("testdata", name))
		require.NoError(t, err)
		require.Equal(t, version, f.Version)
		require.EqualValues(t, 32, f.Alignment)
		arch, err := f.String("general.architecture")
		require.NoError(t, err)
		require.Equal(t, "llama", arch)
		tokens, err := f.Strings("tokenizer.ggml.tokens")
		require.NoError(t, err)
		require.Equal(t, []string{"<s>", "</s>", "▁Hello", "日本"}, tokens)
		scores, err := f.Floats("tokenizer.ggml.scores")
		require.NoError(t, err)
		require.Equal(t, []float64{0, -1, -2.5, 1}, scores)
		x := f.Tensor("blk.0.attn_q.weight")
		require.True(t, x.Is(F32, 4, 3), "%v", x)
		require.Equal(t, []float32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, View[float32](x.Data))
		require.ErrorIs(t, f.VerifyChecksum(context.Background(), nil), ErrNoChecksum)
		require.NoError(t, f.Close())
	}
}

func TestAttacks(t *testing.T) {
	all := attacks()
	require.GreaterOrEqual(t, len(all), 30)
	dir := t.TempDir()
	names := map[string]bool{}
	for _, a := range all {
		require.False(t, names[a.name], a.name)
		names[a.name] = true
		t.Run(a.name, func(t *testing.T) {
			path := filepath.Join(dir, "bad.gguf")
			require.NoError(t, os.WriteFile(path, a.b, 0o666))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, parseErr := Parse(path, a.b)
			_, infoErr := ReadInfo(path)
			_, openErr := Open(path)
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			for _, err := range []error{parseErr, infoErr, openErr} {
				var fe *FormatError
				require.ErrorAs(t, err, &fe)
				require.Equal(t, path, fe.Path)
				require.Contains(t, fe.What, a.want)
				require.Equal(t, a.at, fe.Offset, fe.What)
			}
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4<<20))
			require.Less(t, took, time.Second)
		})
	}
	t.Logf("RELIABILITY gguf_attack_files_rejected %d of %d", len(all), len(all))
}

// TestTruncation cuts a file at every byte.
func TestTruncation(t *testing.T) {
	b := writeSample(t, WriteOptions{})
	whole, err := Parse("m", b)
	require.NoError(t, err)
	last := whole.Tensors[len(whole.Tensors)-1]
	end := int(whole.DataOffset) + int(last.Offset+last.Size())
	path := filepath.Join(t.TempDir(), "cut.gguf")
	for n := range len(b) {
		f, err := Parse(path, b[:n:n])
		if n >= end { // only padding is missing
			require.NoError(t, err, "%d bytes", n)
			equalFiles(t, whole, f)
			require.Error(t, f.VerifyChecksum(context.Background(), nil), "%d bytes", n)
			continue
		}
		var fe *FormatError
		require.ErrorAs(t, err, &fe, "%d of %d bytes", n, len(b))
		require.LessOrEqual(t, fe.Offset, int64(n))
		require.Nil(t, f)
		require.NoError(t, os.WriteFile(path, b[:n], 0o666))
		_, err = ReadInfo(path)
		require.Equal(t, error(fe), err)
	}
	t.Logf("RELIABILITY gguf_truncations %d of %d", len(b), len(b))
}

// TestHeaderDamage changes every byte of the header. The reader says so, or the
// file still holds together; the checksum notices in any case.
func TestHeaderDamage(t *testing.T) {
	b := writeSample(t, WriteOptions{})
	whole, err := Parse("m", b)
	require.NoError(t, err)
	rejected, noticed := 0, 0
	for i := range whole.DataOffset {
		for _, x := range []byte{b[i] ^ 1, b[i] ^ 0x80, 0, 0xff} {
			if x == b[i] {
				continue
			}
			bad := bytes.Clone(b)
			bad[i] = x
			f, err := Parse("m", bad)
			if err != nil {
				var fe *FormatError
				require.ErrorAs(t, err, &fe)
				rejected++
				continue
			}
			require.Error(t, f.VerifyChecksum(context.Background(), nil), "byte %d", i)
			noticed++
		}
	}
	t.Logf("%d changes rejected, %d found by the checksum", rejected, noticed)
}

func TestVerifyChecksum(t *testing.T) {
	ctx := context.Background()
	b := writeSample(t, WriteOptions{})
	whole, err := Parse("m", b)
	require.NoError(t, err)
	for i := whole.DataOffset; i < whole.Size; i++ {
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		f, err := Parse("m", bad)
		require.NoError(t, err)
		var fe *FormatError
		require.ErrorAs(t, f.VerifyChecksum(ctx, nil), &fe)
		require.Contains(t, fe.What, "the data was changed")
	}
	f, err := Parse("m", append(bytes.Clone(b), 0))
	require.NoError(t, err)
	require.ErrorContains(t, f.VerifyChecksum(ctx, nil), "the data was changed", "a byte too many")

	path := filepath.Join(t.TempDir(), "m.gguf")
	big := FromBytes("big", I8, []uint64{9 << 20}, make([]byte, 9<<20))
	var written, read []int64
	require.NoError(t, Write(fsx.OS(), path, nil, []Source{big}, WriteOptions{Progress: func(done, total int64) {
		written = append(written, done, total)
	}}))
	require.Equal(t, []int64{9 << 20, 9 << 20}, written)
	f, err = Open(path)
	require.NoError(t, err)
	require.NoError(t, f.VerifyChecksum(ctx, func(done, total int64) { read = append(read, done, total) }))
	require.Equal(t, []int64{4 << 20, 9 << 20, 8 << 20, 9 << 20, 9 << 20, 9 << 20}, read)
	stopped, stop := context.WithCancel(ctx)
	err = f.VerifyChecksum(stopped, func(int64, int64) { stop() })
	require.ErrorIs(t, err, context.Canceled)
	// The file is cut short while it is open.
	require.NoError(t, os.Truncate(path, 1<<20))
	require.ErrorContains(t, f.VerifyChecksum(ctx, nil), "cut short")
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	require.Error(t, f.VerifyChecksum(ctx, nil))
}

func TestReadInfo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	// A header of several reads.
	tokens := make([]string, 50_000)
	for i := range tokens {
		tokens[i] = fmt.Sprintf("token %d", i)
	}
	meta := append(sampleMeta(), KV{"tokenizer.ggml.tokens", Array(tokens)})
	require.NoError(t, Write(fsx.OS(), path, meta, sampleTensors(), WriteOptions{}))
	opened, err := Open(path)
	require.NoError(t, err)
	info, err := ReadInfo(path)
	require.NoError(t, err)
	require.Equal(t, opened.Meta, info.Meta)
	require.Equal(t, opened.DataOffset, info.DataOffset)
	for i := range info.Tensors {
		require.Nil(t, info.Tensors[i].Data)
		require.EqualValues(t, len(opened.Tensors[i].Data), info.Tensors[i].Size())
	}
	require.NoError(t, info.Close())
	// Metadata outlives the mapping.
	require.NoError(t, opened.Close())
	got, err := opened.Strings("tokenizer.ggml.tokens")
	require.NoError(t, err)
	require.Equal(t, tokens, got)

	_, err = ReadInfo(filepath.Dir(path))
	require.ErrorContains(t, err, "not a regular file")
	_, err = Open(path + "x")
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestFillFails reads a header whose file breaks off or cannot be read.
func TestFillFails(t *testing.T) {
	b := writeSample(t, WriteOptions{})
	_, err := parse(&reader{path: "m", src: bytes.NewReader(b[:100]), size: int64(len(b))})
	var fe *FormatError
	require.ErrorAs(t, err, &fe)
	require.EqualValues(t, 100, fe.Offset)
	disk := fsx.NewCrash(1)
	require.NoError(t, Write(disk, "m", sampleMeta(), nil, WriteOptions{}))
	file, err := fsx.NewFault(disk, fsx.FaultOptions{FailAt: 2}).Open("m")
	require.NoError(t, err)
	_, err = parse(&reader{path: "m", src: file, size: int64(len(b))})
	require.ErrorContains(t, err, "input/output error")
}

func TestGetters(t *testing.T) {
	f, err := Parse("m.gguf", writeSample(t, WriteOptions{}))
	require.NoError(t, err)
	for _, key := range []string{"a.uint8", "a.uint16", "a.uint32", "a.uint64"} {
		_, err := f.Uint(key)
		require.NoError(t, err, key)
	}
	for _, key := range []string{"a.int8", "a.int16", "a.int32", "a.int64", "a.uint32"} {
		_, err := f.Int(key)
		require.NoError(t, err, key)
	}
	for _, key := range []string{"l.uint8", "l.int8", "l.uint16", "l.int16", "l.uint32", "l.int32", "l.int64"} {
		_, err := f.Ints(key)
		require.NoError(t, err, key)
	}
	v, err := f.Float("a.float32")
	require.NoError(t, err)
	require.Equal(t, float64(float32(0.1)), v)
	bools, err := f.Bools("l.bool")
	require.NoError(t, err)
	require.Equal(t, []bool{true, false}, bools)

	get := map[string]func() error{
		`"a.int8" is int8 -128, expected an integer of 0 or more`:            func() error { _, err := f.Uint("a.int8"); return err },
		`"a.uint64" is uint64, expected a signed 64-bit integer`:             func() error { _, err := f.Int("a.uint64"); return err },
		`"none" is missing, expected a string`:                               func() error { _, err := f.String("none"); return err },
		`"a.true" is bool, expected a float`:                                 func() error { _, err := f.Float("a.true"); return err },
		`"a.empty" is string, expected a bool`:                               func() error { _, err := f.Bool("a.empty"); return err },
		`"l.uint64" is array of uint64, expected an array of integers`:       func() error { _, err := f.Ints("l.uint64"); return err },
		`"l.int32" is array of int32, expected an array of strings`:          func() error { _, err := f.Strings("l.int32"); return err },
		`"l.nested" is array of array, expected an array of floats`:          func() error { _, err := f.Floats("l.nested"); return err },
		`"a.uint8" is uint8 255, expected an array of bools`:                 func() error { _, err := f.Bools("a.uint8"); return err },
		`"general.architecture" is string, expected an integer of 0 or more`: func() error { _, err := f.UintOr("general.architecture", 1); return err },
	}
	for want, run := range get {
		var fe *FormatError
		require.ErrorAs(t, run(), &fe)
		require.Equal(t, "m.gguf", fe.Path)
		require.Positive(t, fe.Offset)
		require.Equal(t, "metadata key "+want, fe.What)
	}
	// Defaults stand in for missing keys only.
	s, err := f.StringOr("none", "x")
	require.NoError(t, err)
	require.Equal(t, "x", s)
	u, err := f.UintOr("a.uint8", 3)
	require.NoError(t, err)
	require.EqualValues(t, 255, u)
	n, err := f.IntOr("none", -3)
	require.NoError(t, err)
	require.EqualValues(t, -3, n)
	fl, err := f.FloatOr("none", 0.5)
	require.NoError(t, err)
	require.Equal(t, 0.5, fl)
	yes, err := f.BoolOr("none", true)
	require.NoError(t, err)
	require.True(t, yes)

	for _, kv := range sampleMeta() {
		got, err := ValueOf(kv.Value.Any())
		require.NoError(t, err)
		require.Equal(t, kv.Value, got)
		if x, ok := f.Lookup(kv.Key); kv.Key != alignKey {
			require.True(t, ok)
			require.Equal(t, kv.Value.Any(), x)
		}
	}
	_, err = ValueOf(7)
	require.EqualError(t, err, "gguf: metadata cannot hold a int")
	_, ok := f.Lookup("none")
	require.False(t, ok)

	fe := f.Errorf(f.Tensor("norm"), "expected %d", 7)
	require.Equal(t, `tensor "norm": expected 7`, fe.What)
	require.Equal(t, f.HeaderSize, f.Errorf(nil, "no layers").Offset)
}

func TestWriteRefuses(t *testing.T) {
	data := func(n int) func(io.Writer) error {
		return func(w io.Writer) error { _, err := w.Write(make([]byte, n)); return err }
	}
	ok := Source{"a", F32, []uint64{4}, data(16)}
	tests := map[string]struct {
		meta    []KV
		tensors []Source
		o       WriteOptions
	}{
		"the name is empty":                  {meta: []KV{{"", V(true)}}},
		`metadata key "k" is given twice`:    {meta: []KV{{"k", V(true)}, {"k", V(false)}}},
		`"k": metadata cannot hold a <nil>`:  {meta: []KV{{"k", Value{}}}},
		"element 0 of an array of arrays is": {meta: []KV{{"k", ArrayOfArrays([]Value{V("x")})}}},
		"has 67108865 bytes, at most":        {meta: []KV{{"k", Array(make([]uint8, 64<<20-11))}}},
		`tensor "a" is given twice`:          {tensors: []Source{ok, ok}},
		"tensor: the name \"\\xff\"":         {tensors: []Source{{"\xff", F32, []uint64{1}, nil}}},
		"storage type 99 is unknown":         {tensors: []Source{{"a", 99, []uint64{1}, nil}}},
		"dimension 0 is 31":                  {tensors: []Source{{"a", Q4_0, []uint64{31}, nil}}},
		"15 of 16 bytes were given":          {tensors: []Source{{"a", F32, []uint64{4}, data(15)}}},
		"1 bytes too many":                   {tensors: []Source{{"a", F32, []uint64{4}, data(17)}}},
		"unexpected EOF":                     {tensors: []Source{ok, {"b", F32, []uint64{4}, func(io.Writer) error { return io.ErrUnexpectedEOF }}}},
		"general.alignment is 24":            {o: WriteOptions{Alignment: 24}},
		"general.alignment is 0, expected":   {o: WriteOptions{Alignment: -64}},
	}
	for want, tt := range tests {
		disk := fsx.NewCrash(1)
		err := Write(disk, "m.gguf", tt.meta, tt.tensors, tt.o)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "gguf: write m.gguf: ")
		list, _ := disk.ReadDir(".")
		require.Empty(t, list, want)
	}
	deep := Array([]uint8{1})
	for range maxDepth {
		deep = ArrayOfArrays([]Value{deep})
	}
	require.ErrorContains(t, Write(fsx.NewCrash(1), "m", []KV{{"k", deep}}, nil, WriteOptions{}), "nested deeper")
}

// TestWriteSurvivesPowerLoss replaces a model and cuts the power everywhere.
func TestWriteSurvivesPowerLoss(t *testing.T) {
	old := writeSample(t, WriteOptions{})
	next := writeSample(t, WriteOptions{Alignment: 256})
	for n := 0; ; n++ {
		disk := fsx.NewCrash(uint64(n))
		require.NoError(t, Write(disk, "m", sampleMeta(), sampleTensors(), WriteOptions{}))
		var err error
		done := disk.StopAfter(n, func() {
			err = Write(disk, "m", sampleMeta(), sampleTensors(), WriteOptions{Alignment: 256})
		})
		for _, percent := range []int{0, 50, 100} {
			got, readErr := fsx.ReadFile(disk.AfterPowerLoss(percent, 100-percent), "m", 1<<20)
			require.NoError(t, readErr)
			isOld, isNext := bytes.Equal(got, old), bytes.Equal(got, next)
			require.True(t, isNext || isOld && err != nil, "op %d (%s)", n, disk.LastOp())
		}
		if done {
			break
		}
		require.ErrorIs(t, err, fsx.ErrPowerLoss)
	}
	for n := 1; ; n++ {
		disk := fsx.NewCrash(1)
		require.NoError(t, fsx.WriteAtomic(disk, "m", func(w io.Writer) error { _, err := w.Write(old); return err }))
		fault := fsx.NewFault(disk, fsx.FaultOptions{FailAt: n, Short: n%2 == 0})
		err := Write(fault, "m", sampleMeta(), sampleTensors(), WriteOptions{Alignment: 256})
		got, readErr := fsx.ReadFile(disk, "m", 1<<20)
		require.NoError(t, readErr)
		require.True(t, bytes.Equal(got, old) || bytes.Equal(got, next))
		if !fault.Failed() {
			require.NoError(t, err)
			break
		}
		require.Error(t, err)
	}
}

func TestView(t *testing.T) {
	b := make([]byte, 64)
	for i := range b {
		b[i] = byte(i * 37)
	}
	for off := range 8 { // aligned and not
		src := b[off : off+32 : off+32]
		u := View[uint16](src)
		f := View[float32](src)
		d := View[int64](src)
		require.Len(t, u, 16)
		for i := range u {
			require.Equal(t, binary.LittleEndian.Uint16(src[2*i:]), u[i])
		}
		for i := range f {
			require.Equal(t, binary.LittleEndian.Uint32(src[4*i:]), math.Float32bits(f[i]))
		}
		for i := range d {
			require.EqualValues(t, binary.LittleEndian.Uint64(src[8*i:]), d[i])
		}
		require.Equal(t, src, Bytes(u))
		require.Equal(t, src, Bytes(View[int8](src)))
		require.Len(t, View[float32](src[:7]), 1)
	}
	require.Empty(t, View[float32](nil))
	require.NotNil(t, View[uint16]([]byte{1}))
	require.Empty(t, Bytes([]float64(nil)))
	if littleEndian() { // no copy where none is needed
		require.Same(t, &b[0], &Bytes(View[float64](b))[0])
	}
}

func TestErrorText(t *testing.T) {
	_, err := Parse("dir/m.gguf", []byte("GGUF\x03\x00\x00\x00"))
	require.EqualError(t, err, "gguf: dir/m.gguf: byte 8: number of tensors needs 8 bytes, the file has 0 left")
	require.False(t, errors.Is(err, ErrNoChecksum))
	require.Equal(t, "type 77", Type(77).String())
	require.Equal(t, "value type 13", ValueType(13).String())
}

func Example() {
	dir, _ := os.MkdirTemp("", "gguf")
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "m.gguf")
	weights := []float32{1, 2, 3, 4, 5, 6}
	err := Write(nil, path,
		[]KV{{"general.architecture", V("demo")}, {"demo.sizes", Array([]uint32{3, 2})}},
		[]Source{FromBytes("w", F32, []uint64{3, 2}, Bytes(weights))}, WriteOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := Open(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer f.Close()
	w := f.Tensor("w")
	fmt.Println(w.Type, w.Dims, View[float32](w.Data))
	fmt.Println(f.VerifyChecksum(context.Background(), nil))
	// Output:
	// F32 [3 2] [1 2 3 4 5 6]
	// <nil>
}

func TestCollect(t *testing.T) {
	pairs := func(yield func(string, any) bool) {
		_ = yield("a", "text") && yield("b", uint32(3)) && yield("c", []string{"x", "y"})
	}
	kvs, err := Collect(pairs)
	require.NoError(t, err)
	require.Equal(t, []KV{{"a", V("text")}, {"b", V(uint32(3))}, {"c", Array([]string{"x", "y"})}}, kvs)
	_, err = Collect(func(yield func(string, any) bool) { yield("bad", struct{}{}) })
	require.ErrorContains(t, err, `"bad"`)
	kvs, err = Collect(func(func(string, any) bool) {})
	require.NoError(t, err)
	require.Empty(t, kvs)
}
