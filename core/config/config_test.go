package config

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const small = `name = "t"

[model]
dim = 64
layers = 2
heads = 4
ffn = 128
vocab = 300
`

func TestParseFillsDefaultsAndSources(t *testing.T) {
	c, err := Parse("run.toml", []byte(small), "model.context=32k", "model.mhc=sinkhorn", "model.rope_theta=5e5", "model.tie_embeddings = true")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultModel()
	want.Dim, want.Layers, want.Heads, want.KVHeads, want.HeadDim, want.FFN, want.Vocab = 64, 2, 4, 4, 16, 128, 300
	want.Context, want.MHC, want.RopeTheta, want.TieEmbeddings = 32768, MHCSinkhorn, 5e5, true
	if d := cmp.Diff(want, c.Model); d != "" {
		t.Errorf("model differs (-want +got):\n%s", d)
	}
	for key, src := range map[string]string{
		"name": "run.toml:1", "model.dim": "run.toml:4", "model.vocab": "run.toml:8", "model.context": "--set",
		"model.norm_eps": "default", "model.kv_heads": "derived from model.heads", "nothing": "",
	} {
		if got := c.Source(key); got != src {
			t.Errorf("Source(%q) = %q, want %q", key, got, src)
		}
	}
	if got := len(c.Settings()); got != len(fields) {
		t.Errorf("%d settings, %d keys", got, len(fields))
	}
}

// TestErrors holds one row per way to be wrong: the document, or the --set, and
// what the message must hold, place first.
func TestErrors(t *testing.T) {
	add := func(line string) string { return small + line + "\n" }
	for _, c := range []struct {
		name, doc, set string
		want           string
	}{
		{"syntax", "a = [1\nb", "", "config: f.toml:2: "},
		{"syntax, colon", "dim: 3", "", "config: f.toml:1: expected '=' after key (a line is key = value"},
		{"syntax, no key", "= 3", "", `f.toml:1: invalid character at start of key: U+003D '=' (a line is key = value`},
		{"syntax, no quotes", "mhc = bvn", "", `f.toml:1: unexpected character U+0062 'b' at start of value (a value is a number, true, false, "text" in quotes`},
		{"syntax, unit", "a = 32k", "", `f.toml:1: strings must be quoted (a value is`},
		{"syntax, open quotes", "a = \"x\n", "", `f.toml:1: basic strings cannot have new lines (close the quotes`},
		{"syntax, open list", "a = [1, 2\n", "", `f.toml:1: array is incomplete (close the list`},
		{"syntax, open section", "[model\ndim = 3", "", `(a section is [name] on a line of its own)`},
		{"syntax, backslash", `a = "\q"`, "", `invalid escape character U+0071 'q' (write \\ for a backslash`},
		{"syntax, section twice", "[model]\n[model]\n", "", `f.toml:2: table model already exists (remove one of the two)`},
		{"duplicate", add("dim = 3"), "", "f.toml:9: "},
		{"unknown key", add("layer = 3"), "", `config: f.toml:9: model.layer: unknown key (did you mean model.layers?)`},
		{"swapped letters", add("vocba = 3"), "", `model.vocba: unknown key (did you mean model.vocab?)`},
		{"nothing like it", add("frobnicate = 3"), "", `model.frobnicate: unknown key (the keys of [model] are dim, layers, `},
		{"key outside its section", "vocab = 3\n" + small, "", `f.toml:1: vocab: unknown key (did you mean model.vocab?)`},
		{"section of another kind", small + "[training]\nsteps = 3\n", "", `f.toml:10: training.steps: unknown key (did you mean train.steps?)`},
		{"nothing like any section", small + "[zzz]\nqqqqqq = 3\n", "", `f.toml:10: zzz.qqqqqq: unknown key (the sections are model, data, train, schedule, optim, optim.matrix,`},
		{"empty unknown section", small + "[training]\n", "", `f.toml:9: training: unknown key`},
		{"dotted and inline", "model = {dim = 64, layrs = 2}", "", `f.toml:1: model.layrs: unknown key (did you mean model.layers?)`},
		{"section as key", "model = 3", "", `f.toml:1: model: is a section, not a key`},
		{"array of tables", "[[model]]\ndim = 3", "", `f.toml:1: model: is a section`},
		{"string for number", strings.Replace(small, "dim = 64", `dim = "wide"`, 1), "", `f.toml:4: model.dim: "wide" is a string, not an integer`},
		{"decimal for integer", strings.Replace(small, "dim = 64", "dim = 64.0", 1), "", `model.dim: 64 is a decimal number, not an integer`},
		{"boolean for string", add("mhc = true"), "", `model.mhc: true is a boolean, not a string`},
		{"number for boolean", add("qk_norm = 1"), "", `model.qk_norm: 1 is an integer, not true or false`},
		{"array", add("rope_theta = [1]"), "", `model.rope_theta: [1] is an array, not a number`},
		{"below range", strings.Replace(small, "dim = 64", "dim = 8", 1), "", `f.toml:4: model.dim: 8 is outside 16 to 65536 (width of the residual stream)`},
		{"above range", strings.Replace(small, "layers = 2", "layers = 9223372036854775807", 1), "", `model.layers: 2147483647 is outside 1 to 1024`},
		{"not a number", add("norm_eps = nan"), "", `model.norm_eps: NaN is outside 1e-12 to 0.1`},
		{"infinite", add("logit_softcap = inf"), "", `model.logit_softcap: +Inf is outside 0 to 10000`},
		{"not one of", add(`ffn_kind = "gelu"`), "", `model.ffn_kind: "gelu" is not one of swiglu, relu2, relu2_glu`},
		{"group", add("group = 32"), "", `model.group: "32" is not one of 0, 64, 128, 256`},
		{"streams", add("streams = 3"), "", `model.streams: "3" is not one of 1, 2, 4`},
		{"missing", strings.Replace(small, "vocab = 300\n", "", 1), "", `config: model.vocab: is required (add it: number of token ids (2 to 16777216))`},
		{"kv heads", add("kv_heads = 3"), "", `f.toml:9: model.kv_heads: 3 does not divide 4 heads`},
		{"odd head", add("head_dim = 5"), "", `f.toml:9: model.head_dim: 5 is odd`},
		{"zero kv heads is not the default", add("kv_heads = 0"), "", `f.toml:9: model.kv_heads: 0 is outside`},
		{"q8_0 width", strings.Replace(small, "dim = 64", "dim = 72", 1) + "embedding = \"q8_0\"\n", "", `model.embedding: q8_0 needs a dim that is a multiple of 32, not 72 (use f16)`},
		{"set without value", small, "model.vocab", `config: --set: model.vocab: has no value (write key=value`},
		{"set of unknown key", small, "model.vocabulary=3", `config: --set: model.vocabulary: unknown key (did you mean model.vocab?)`},
		{"set of wrong type", small, "model.vocab=many", `config: --set: model.vocab: "many" is a string, not an integer`},
		{"set out of range", small, "model.vocab=1", `config: --set: model.vocab: 1 is outside 2 to 16777216`},
		{"set empty", small, "model.mhc=", `model.mhc: "" is not one of bvn, sinkhorn`},
		{"set of no text", small, "name=\xff", `--set: name: "\xff" is not valid UTF-8`},
		{"set with two lines", small, "model.dim=64\nlayers=9", `model.dim: "64\nlayers=9" is a string`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var sets []string
			if c.set != "" {
				sets = []string{c.set}
			}
			_, err := Parse("f.toml", []byte(c.doc), sets...)
			var ce *Error
			if !errors.As(err, &ce) {
				t.Fatalf("error %v (%T) is not an *Error", err, err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error\n  %s\ndoes not hold\n  %s", err, c.want)
			}
		})
	}
}

// The counts are worked out by hand from the shapes: attention 4·dim² (less with
// grouped queries), feed-forward 3·dim·ffn, per layer; norms and mixing apart.
func TestPresetCounts(t *testing.T) {
	want := map[string]ParamCount{
		"tiny":      {Ternary: 4 * (4*256*256 + 3*256*512), Embedding: 4096 * 256, Norms: 4*(2*256+256+512) + 256, MHC: 8 * 6},
		"nano-125m": {Ternary: 12 * (4*768*768 + 3*768*2048), Embedding: 50257 * 768, Norms: 12*(2*768+768+2048) + 768, MHC: 24 * 6},
		"bitnet-2b-4t": {Ternary: 30 * (2*2560*2560 + 2*2560*640 + 3*2560*6912), Embedding: 128256 * 2560,
			Norms: 30*(2*2560+2560+6912) + 2560},
		"large-7b": {Ternary: 32 * (2*4096*4096 + 2*4096*1024 + 3*4096*11008), Embedding: 128256 * 4096, Head: 128256 * 4096,
			Norms: 32*(2*4096+4096+11008) + 4096, MHC: 64 * 32},
	}
	for name, p := range want {
		c, err := Preset(name)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(p, c.Model.Params()); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// A preset whose name holds a size must have that many weights, within 4 %.
func TestPresetNamesAreHonest(t *testing.T) {
	sizes := map[string]float64{"nano-5m": 5e6, "nano-125m": 125e6, "small-560m": 560e6, "medium-3b": 3e9, "large-7b": 7e9,
		"workstation-a": 7e9, "workstation-b": 3e9, "workstation-c": 5e9, "bitnet-2b-4t": 2.4e9, "tiny": 3.7e6}
	sizes["nano-5m"] = 4.72e6 + 2*4096*256 // named after its ternary weights; both tables are as large as for a bigger model
	for _, name := range Presets() {
		c, err := Preset(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if c.Name != name || c.Description == "" {
			t.Errorf("%s: name %q, description %q", name, c.Name, c.Description)
		}
		got := float64(c.Model.Params().Total())
		if want, ok := sizes[name]; !ok || math.Abs(got/want-1) > 0.045 {
			t.Errorf("%s has %.4g weights, want %.4g", name, got, want)
		}
	}
}

func TestPresetErrors(t *testing.T) {
	for _, c := range []struct{ name, set, want string }{
		{"nano-125", "", `config: there is no preset "nano-125" (did you mean nano-125m?)`},
		{"zzz", "", `(the presets are bitnet-2b-4t, large-7b,`},
		{"../../x", "", `there is no preset "../../x"`},
		{"tiny", "model.dim=9", `--set: model.dim: 9 is outside`},
	} {
		var sets []string
		if c.set != "" {
			sets = append(sets, c.set)
		}
		if _, err := Preset(c.name, sets...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Preset(%q): %v, want %q", c.name, err, c.want)
		}
	}
}

func TestModelValidate(t *testing.T) {
	c, err := Preset("tiny")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Model.Validate(); err != nil {
		t.Fatal(err)
	}
	m := c.Model
	m.Heads = 0
	if err := m.Validate(); err == nil || err.Error() != "config: model.heads: 0 is outside 1 to 1024" {
		t.Errorf("no heads: %v", err)
	}
	if err := (Model{}).Validate(); err == nil {
		t.Error("the zero model is valid")
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "200": 200, "32k": 32768, "4MiB": 4 << 20, "2GB": 2e9, "1_000": 1000, " 8 K ": 8192, "1T": 1 << 40, "-1": -1} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "k", "1.5k", "3x", "0x10", "9223372036854775807k", "1kk"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", in, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(small), "model.vocab=2")
	f.Add([]byte("preset = 'tiny'\n[train]\nsteps = 100\n[optim.head]\nlr = 1e-3\n"), "name=a\tb")
	f.Add([]byte("model = {dim = 64, a.b = 2}\n[x]\n[[y]]\n"), "x")
	f.Fuzz(func(t *testing.T, doc []byte, set string) {
		c, err := Parse("f", doc, set)
		if err != nil {
			var ce *Error
			if !errors.As(err, &ce) {
				t.Fatalf("error %T", err)
			}
			return
		}
		if err := c.Model.Validate(); err != nil {
			t.Fatalf("accepted, but: %v", err)
		}
		text := c.TOML()
		back, err := Parse("again", []byte(text))
		if err != nil {
			t.Fatalf("written as TOML: %v\n%s", err, text)
		}
		if d := back.Differences(c); len(d) > 0 {
			t.Fatalf("written as TOML: %v", d)
		}
	})
}

func ExamplePreset() {
	c, err := Preset("nano-125m", "model.vocab=16384")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.Model.Dim, c.Model.Vocab, c.Source("model.vocab"), c.Source("model.dim"))
	_, err = Preset("nano-125m", "model.layer=3")
	fmt.Println(err)
	// Output:
	// 768 16384 --set preset nano-125m:5
	// config: --set: model.layer: unknown key (did you mean model.layers?)
}
