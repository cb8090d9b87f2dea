package introspect

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/tokenizer"
)

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func fails(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not say %q", err, part)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, name := range Presets() {
		c := must[*Config](t)(Preset(name))
		if c.Name() == "" || c.TernaryWeights() <= 0 || c.TernaryWeights()+c.EmbeddingWeights() > c.Weights() {
			t.Errorf("%s: %q has %d weights, %d ternary, %d of embedding and head", name, c.Name(), c.Weights(), c.TernaryWeights(), c.EmbeddingWeights())
		}
		again := must[*Config](t)(ParseConfig("again.toml", c.Toml()))
		for _, key := range c.Keys() {
			if a, b := must[string](t)(c.Get(key)), must[string](t)(again.Get(key)); a != b {
				t.Errorf("%s: %s is %s, and %s when it is read again", name, key, a, b)
			}
			must[string](t)(c.Doc(key))
			if must[string](t)(c.Origin(key)) == "" {
				t.Errorf("%s: %s comes from nowhere", name, key)
			}
		}
	}
	small := must[*Config](t)(PresetWith("nano-5m", []string{"model.layers=2"}))
	if got := must[string](t)(small.Get("model.layers")); got != "2" || must[string](t)(small.Origin("model.layers")) != "--set" {
		t.Errorf("model.layers is %s", got)
	}

	_, err := Preset("nano-5n")
	fails(t, err, "nano-5n")
	_, err = ParseConfig("my.toml", "[model]\ndimm = 3\n")
	fails(t, err, "my.toml:2", "model.dimm", "model.dim?")
	_, err = small.Get("model.layer")
	fails(t, err, "model.layer", "model.layers?")
	_, err = small.Doc("zzz")
	fails(t, err, "zzz")
	_, err = small.Origin("zzz")
	fails(t, err, "zzz")
}

// prepared makes a vocabulary and one shard of a few documents.
func prepared(t *testing.T) (path, shard string, split *data.Split) {
	t.Helper()
	dir := t.TempDir()
	code := filepath.Join(dir, "code")
	for _, name := range []string{"a", "b", "c"} {
		if err := os.MkdirAll(code, 0o700); err != nil {
			t.Fatal(err)
		}
		text := strings.Repeat("pub fn "+name+"(x: u32) -> u32 {\n    x + "+name+"_OFFSET // é\n}\n\n", 30)
		if err := os.WriteFile(filepath.Join(code, name+".rs"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tok := must[*tokenizer.Tokenizer](t)(tokenizer.NewByteLevel(300))
	path = filepath.Join(dir, "tokenizer.json")
	if err := tok.SaveHF(path); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "data")
	m, err := data.Prepare(t.Context(), data.PrepareOptions{Inputs: []string{code}, Out: out, Tokenizer: tok}, nil)
	if err != nil {
		t.Fatal(err)
	}
	split = m.Splits[data.Train]
	return path, filepath.Join(out, split.Shards[0].File), split
}

func TestTokenizer(t *testing.T) {
	path, _, _ := prepared(t)
	v := must[*Tokenizer](t)(OpenTokenizer(path))
	ids := v.Encode("fn é")
	if v.Size() != 300 || len(ids) != 5 || must[string](t)(v.Decode(ids)) != "fn é" {
		t.Errorf("%d tokens; fn é is %v", v.Size(), ids)
	}
	if got := must[string](t)(v.Decode(ids[:4])); got != "fn \uFFFD" {
		t.Errorf("half a character is %q", got)
	}
	if f := must[string](t)(v.Token(ids[0])); f != "f" || v.Find(f) != ids[0] || v.Find("no such token") != -1 {
		t.Errorf("token %d is %q", ids[0], f)
	}
	stops := v.Stops()
	if len(stops) == 0 || !v.IsSpecial(stops[0]) || v.IsSpecial(ids[0]) || v.IsSpecial(-1) || v.IsSpecial(300) {
		t.Errorf("texts end with %v", stops)
	}
	if v.Split() == "" {
		t.Error("the split has no name")
	}
	for _, id := range []int{-1, 300, 1 << 40} {
		_, err := v.Token(id)
		fails(t, err, "299")
		_, err = v.Decode([]int{id})
		fails(t, err, "299")
	}
	_, err := OpenTokenizer(filepath.Join(t.TempDir(), "none.json"))
	fails(t, err, "none.json")
}

func TestShard(t *testing.T) {
	path, shard, want := prepared(t)
	s := must[*Shard](t)(OpenShard(shard))
	if s.Documents != want.Documents || int64(s.Tokens) != want.Tokens || int64(s.TextBytes) != want.Bytes || s.Vocabulary != 300 {
		t.Errorf("%+v, want %+v", s, want)
	}
	if s.Documents < 1 || s.Shortest <= 0 || s.Shortest > s.Median || s.Median > s.Longest || s.Longest > s.Tokens || len(s.TokenizerHash) != 64 {
		t.Errorf("%+v", s)
	}
	if got := s.BytesPerToken(); got != 1 { // a token is a byte
		t.Errorf("%v bytes a token", got)
	}
	sum := 0
	common := s.Common(1 << 40)
	for i, id := range common {
		sum += s.Count(id)
		if i > 0 && s.Count(id) > s.Count(common[i-1]) {
			t.Errorf("token %d is not the %d. most frequent", id, i)
		}
	}
	if sum != s.Tokens || len(common) != s.Used || len(s.Common(-1)) != 0 || len(s.Common(2)) != 2 || s.Count(-1) != 0 || s.Count(300) != 0 {
		t.Errorf("%d of %d tokens, %d of %d ids", sum, s.Tokens, len(common), s.Used)
	}
	text := must[string](t)(Document(shard, path, 0))
	if !strings.HasPrefix(text, "pub fn ") {
		t.Errorf("document 0 is %q", text)
	}

	_, err := Document(shard, path, s.Documents)
	fails(t, err, shard)
	_, err = Document(shard, path, -1)
	fails(t, err, shard)
	other := filepath.Join(t.TempDir(), "other.json")
	tok := must[*tokenizer.Tokenizer](t)(tokenizer.NewByteLevel(301))
	if err := tok.SaveHF(other); err != nil {
		t.Fatal(err)
	}
	_, err = Document(shard, other, 0)
	fails(t, err, "another tokenizer")
	_, err = Document(other, path, 0)
	fails(t, err, "other.json")
	_, err = OpenShard(path)
	fails(t, err, "tokenizer.json")
	if (&Shard{}).BytesPerToken() != 0 {
		t.Error("an empty shard has bytes for each token")
	}
}
