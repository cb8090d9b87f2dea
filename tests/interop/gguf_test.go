package interop

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
)

func runGGUFScript(t *testing.T, args ...string) {
	py := os.Getenv("NANOCHAT_PYTHON")
	if py == "" {
		t.Skip("NANOCHAT_PYTHON is not set: want a Python with the packages of requirements-dev.txt; `make test` sets it")
	}
	out, err := exec.Command(py, append([]string{"gguf_reference.py"}, args...)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// seen is what the Python package says about a file.
type seen struct {
	Version         uint32
	Alignment, Data uint64
	Fields          map[string]struct {
		Types []string
		Value json.RawMessage
	}
	Tensors []struct {
		Name, Type, Sha256 string
		Dims               []uint64
		Offset             uint64
	}
}

// compareReaders has the Python package and this module read the same files, and
// compares all they say, and the values of all tensors, to the last bit.
func compareReaders(t *testing.T, paths []string) {
	dir := t.TempDir()
	jsonPath, binPath := filepath.Join(dir, "out.json"), filepath.Join(dir, "out.bin")
	runGGUFScript(t, append([]string{"dump", jsonPath, binPath}, paths...)...)
	b, err := os.ReadFile(jsonPath)
	require.NoError(t, err)
	var all []seen
	require.NoError(t, json.Unmarshal(b, &all))
	b, err = os.ReadFile(binPath)
	require.NoError(t, err)
	values := gguf.View[uint32](b)
	require.Len(t, all, len(paths))
	for i, path := range paths {
		f, err := gguf.Open(path)
		require.NoError(t, err)
		values = compareFile(t, f, all[i], values)
		require.NoError(t, f.Close())
	}
	require.Empty(t, values)
}

// compareFile returns what is left of values after those of f's tensors.
func compareFile(t *testing.T, f *gguf.File, want seen, values []uint32) []uint32 {
	require.Equal(t, want.Version, f.Version)
	require.Equal(t, want.Alignment, f.Alignment)
	require.EqualValues(t, want.Data, f.DataOffset)
	require.Len(t, f.Meta, len(want.Fields))
	for _, kv := range f.Meta {
		field := want.Fields[kv.Key]
		require.Equal(t, field.Types, valueTypes(kv.Value), kv.Key)
		require.JSONEq(t, string(field.Value), plain(t, kv.Value.Any()), kv.Key)
	}
	require.Len(t, f.Tensors, len(want.Tensors))
	for i, w := range want.Tensors {
		x := f.Tensors[i]
		require.Equal(t, w.Name, x.Name)
		require.Equal(t, w.Type, x.Type.String())
		require.Equal(t, w.Dims, x.Dims)
		require.Equal(t, w.Offset, x.Offset)
		sum := sha256.Sum256(x.Data)
		require.Equal(t, w.Sha256, hex.EncodeToString(sum[:]), x.Name)
		n := x.Elements()
		if gguf.CanDequantize(x.Type) {
			got := make([]float32, n)
			require.NoError(t, gguf.Dequantize(got, x.Type, x.Data))
			for k := range got {
				if math.Float32bits(got[k]) != values[k] && got[k] == got[k] {
					t.Fatalf("%s: %s: value %d is %g, Python says %g", f.Path, x.Name, k, got[k], math.Float32frombits(values[k]))
				}
			}
		}
		values = values[n:]
	}
	return values
}

// valueTypes is the types of v as the package lists them: an array and its
// elements'. An empty array lists only itself.
func valueTypes(v gguf.Value) []string {
	elem, isArray := v.Elem()
	switch {
	case isArray && v.Len() > 0:
		return []string{"array", elem.String()}
	case isArray:
		return []string{"array"}
	}
	return []string{v.Type().String()}
}

// plain is v as JSON, floats as Python's float.hex writes them.
func plain(t *testing.T, v any) string {
	hexFloat := func(x float64) string {
		s := strconv.FormatFloat(x, 'x', 13, 64) // 0x1.999999999999ap-04
		mantissa, exp, _ := strings.Cut(s, "p")
		n, err := strconv.Atoi(exp)
		require.NoError(t, err)
		if x == 0 {
			return strings.Replace(mantissa, "0.0000000000000", "0.0", 1) + "p+0"
		}
		return fmt.Sprintf("%sp%+d", mantissa, n)
	}
	switch x := v.(type) {
	case float32:
		v = hexFloat(float64(x))
	case float64:
		v = hexFloat(x)
	case []float32:
		s := make([]string, len(x))
		for i := range x {
			s[i] = hexFloat(float64(x[i]))
		}
		v = s
	case []float64:
		s := make([]string, len(x))
		for i := range x {
			s[i] = hexFloat(x[i])
		}
		v = s
	case []uint8: // encoding/json would write base64
		s := make([]int, len(x))
		for i := range x {
			s[i] = int(x[i])
		}
		v = s
	}
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

// TestGGUFWrittenHere: the Python package reads random files of ours as we do.
// There are 40; with NANOCHAT_LONG=1, 1000.
func TestGGUFWrittenHere(t *testing.T) {
	count := 40
	if os.Getenv("NANOCHAT_LONG") != "" {
		count = 1000
	}
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(1, 2))
	var paths []string
	for i := range count {
		path := filepath.Join(dir, fmt.Sprintf("go%d.gguf", i))
		align := 8 << rnd.IntN(6)
		require.NoError(t, gguf.Write(nil, path, randomMeta(rnd), randomTensors(t, rnd), gguf.WriteOptions{Alignment: align}))
		paths = append(paths, path)
	}
	compareReaders(t, paths)
	t.Logf("RELIABILITY gguf_readers_agree %d files", count)
}

func randomMeta(rnd *rand.Rand) []gguf.KV {
	text := func() string {
		return string([]rune("aé日 \"\\\n🙂")[rnd.IntN(8)]) + strings.Repeat("x", rnd.IntN(40))
	}
	values := []func() gguf.Value{
		func() gguf.Value { return gguf.V(uint8(rnd.Uint32())) },
		func() gguf.Value { return gguf.V(int8(rnd.Uint32())) },
		func() gguf.Value { return gguf.V(uint16(rnd.Uint32())) },
		func() gguf.Value { return gguf.V(int16(rnd.Uint32())) },
		func() gguf.Value { return gguf.V(rnd.Uint32()) },
		func() gguf.Value { return gguf.V(int32(rnd.Uint32())) },
		func() gguf.Value { return gguf.V(float32(rnd.NormFloat64())) },
		func() gguf.Value { return gguf.V(rnd.IntN(2) == 0) },
		func() gguf.Value { return gguf.V(text()) },
		func() gguf.Value { return gguf.V(rnd.Uint64()) },
		func() gguf.Value { return gguf.V(int64(rnd.Uint64())) },
		func() gguf.Value { return gguf.V(rnd.NormFloat64()) },
		func() gguf.Value { return gguf.Array([]string{text(), text(), ""}) },
		func() gguf.Value { return gguf.Array([]uint8{1, 2, 255}) },
		func() gguf.Value { return gguf.Array([]int32{int32(rnd.Uint32()), -1}) },
		func() gguf.Value { return gguf.Array([]float32{float32(rnd.NormFloat64()), 0}) },
		func() gguf.Value { return gguf.Array([]bool{true, false}) },
		func() gguf.Value { return gguf.Array([]uint64{rnd.Uint64()}) },
		func() gguf.Value { return gguf.Array([]string{}) },
	}
	meta := []gguf.KV{{Key: "general.architecture", Value: gguf.V("test")}}
	for i := range rnd.IntN(30) {
		meta = append(meta, gguf.KV{Key: fmt.Sprintf("key.%d", i), Value: values[rnd.IntN(len(values))]()})
	}
	return meta
}

func randomTensors(t *testing.T, rnd *rand.Rand) []gguf.Source {
	types := []gguf.Type{
		gguf.F32, gguf.F16, gguf.BF16, gguf.Q8_0, gguf.Q4_0, gguf.TQ1_0, gguf.TQ2_0, gguf.Q6_K,
		gguf.I8, gguf.I16, gguf.I32, gguf.F64, gguf.Q4_K, gguf.IQ4_NL,
	}
	var out []gguf.Source
	for i := range rnd.IntN(12) {
		typ := types[rnd.IntN(len(types))]
		block, _ := typ.BlockSize()
		dims := []uint64{uint64(block * (1 + rnd.IntN(3)))}
		for range rnd.IntN(4) {
			dims = append(dims, uint64(1+rnd.IntN(5)))
		}
		size, err := gguf.Size(typ, dims)
		require.NoError(t, err)
		data := make([]byte, size)
		for k := range data {
			data[k] = byte(rnd.Uint32())
		}
		if gguf.CanQuantize(typ) {
			n := uint64(1)
			for _, d := range dims {
				n *= d
			}
			x := make([]float32, n)
			for k := range x {
				x[k] = float32(rnd.NormFloat64())
			}
			require.NoError(t, gguf.Quantize(data, typ, x))
		}
		out = append(out, gguf.FromBytes(fmt.Sprintf("tensor %d é", i), typ, dims, data))
	}
	return out
}

// TestGGUFWrittenByPython: we read files of the Python package as it does.
func TestGGUFWrittenByPython(t *testing.T) {
	dir := t.TempDir()
	runGGUFScript(t, "write", dir)
	paths, err := filepath.Glob(filepath.Join(dir, "*.gguf"))
	require.NoError(t, err)
	require.Len(t, paths, 12)
	compareReaders(t, paths)
}

// TestGGUFTypeSizes compares the table of storage types.
func TestGGUFTypeSizes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sizes.json")
	runGGUFScript(t, "sizes", path)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var want map[string][3]int
	require.NoError(t, json.Unmarshal(b, &want))
	delete(want, "Q8_1") // types of activations, which never stand in files
	delete(want, "Q8_K")
	got := map[string][3]int{}
	for _, typ := range gguf.Types() {
		if typ != gguf.I2_S { // bitnet.cpp's own
			elems, bytes := typ.BlockSize()
			got[typ.String()] = [3]int{int(typ), elems, bytes}
		}
	}
	require.Equal(t, want, got)
}

// TestFormatDecoder runs the Python function printed in docs/FORMAT.md.
func TestFormatDecoder(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, shape := range [][3]int{{16, 128, 128}, {48, 256, 64}, {1, 16, 0}, {33, 200, 0}, {70, 640, 256}, {50, 384, 128}} {
		rows, cols, group := shape[0], shape[1], shape[2]
		x := make([]float32, rows*cols)
		for i := range x {
			x[i] = float32(rnd.NormFloat64())
		}
		w, err := ternary.Quantize(x, rows, cols, group)
		require.NoError(t, err)
		w.Gain = 0.75
		want := make([]float32, len(x))
		require.NoError(t, ternary.Dequantize(want, w))

		n, tiles, groups := uint64(w.Blocks()), uint64(w.ColTiles()), uint64(w.Groups())
		path, out := filepath.Join(dir, "t.gguf"), filepath.Join(dir, "t.bin")
		require.NoError(t, gguf.Write(nil, path, nil, []gguf.Source{
			gguf.FromBytes("x.weight.t", gguf.I8, []uint64{64, tiles, n}, w.Tiles),
			gguf.FromBytes("x.weight.s", gguf.F16, []uint64{16, groups, n}, gguf.Bytes(w.Scales)),
			gguf.FromBytes("x.weight.g", gguf.F32, []uint64{1}, gguf.Bytes([]float32{w.Gain})),
		}, gguf.WriteOptions{}))
		runGGUFScript(t, "ternary", filepath.Join("..", "..", "docs", "FORMAT.md"), path, "x.weight",
			strconv.Itoa(rows), strconv.Itoa(cols), strconv.Itoa(w.Group), out)
		b, err := os.ReadFile(out)
		require.NoError(t, err)
		require.Equal(t, want, gguf.View[float32](b), "%v", shape)
	}
}

// TestHalfDefinitionsAgree: core/gguf knows no kernels and so has the conversions
// of half precision itself; they are the kernels'.
func TestHalfDefinitionsAgree(t *testing.T) {
	check := func(x float32) {
		for typ, want := range map[gguf.Type]uint16{gguf.F16: kernels.F32ToF16(x), gguf.BF16: kernels.F32ToBF16(x)} {
			var b [2]byte
			if gguf.Quantize(b[:], typ, []float32{x}) != nil {
				continue // not finite in this type
			}
			if got := gguf.View[uint16](b[:])[0]; got != want {
				t.Fatalf("%s of %g: %#x, kernels say %#x", typ, x, got, want)
			}
		}
	}
	for h := range 1 << 16 {
		b := gguf.Bytes([]uint16{uint16(h)})
		var f, bf [1]float32
		require.NoError(t, gguf.Dequantize(f[:], gguf.F16, b))
		require.NoError(t, gguf.Dequantize(bf[:], gguf.BF16, b))
		if math.Float32bits(f[0]) != math.Float32bits(kernels.F16ToF32(uint16(h))) {
			t.Fatalf("half %#x", h)
		}
		if math.Float32bits(bf[0]) != math.Float32bits(kernels.BF16ToF32(uint16(h))) {
			t.Fatalf("bfloat16 %#x", h)
		}
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 200_000 {
		check(math.Float32frombits(rnd.Uint32()))
	}
}

// TestFormatNamesEverything: every key of our own and every tensor of a model with
// everything switched on stands in docs/FORMAT.md.
func TestFormatNamesEverything(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "FORMAT.md"))
	require.NoError(t, err)
	layer := regexp.MustCompile(`^blk\.\d+\.`)
	for _, kind := range []string{config.FFNSwiGLU, config.FFNReLU2GLU} {
		preset, err := config.Preset("tiny")
		require.NoError(t, err)
		c := preset.Model
		c.FFNKind, c.QKNorm, c.SubNorm, c.ResidualScalars, c.TieEmbeddings = kind, true, true, true, false
		c.Head, c.Streams, c.MHCDynamic, c.LogitSoftcap = config.TypeF16, 2, true, 30
		m, err := model.Init(t.Context(), c, 1, model.Options{})
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "m.gguf")
		require.NoError(t, m.Save(path))
		f, err := gguf.ReadInfo(path)
		require.NoError(t, err)
		for _, kv := range f.Meta {
			require.Contains(t, string(doc), "`"+kv.Key+"`")
		}
		for _, x := range f.Tensors {
			name := layer.ReplaceAllString(x.Name, "blk.N.")
			for _, part := range []string{".t", ".s", ".g"} {
				if strings.HasSuffix(name, ".weight"+part) {
					name = strings.TrimSuffix(name, part)
				}
			}
			require.Contains(t, string(doc), "`"+name+"`")
		}
	}
}
