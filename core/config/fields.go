package config

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// A field is one key: its place in the struct, its range and its text. The
// table below is what parsing, checking, Settings and the presets' tests share.
type field struct {
	key string
	doc string
	// at points to the value in c: *string, *bool, *int, *int64 or *float64.
	at func(c *Config) any
	// lo and hi bound a number, both included.
	lo, hi float64
	// oneOf lists the strings or integers allowed; nil allows all in range.
	oneOf []string
}

// Limits keep every product of two sizes far from overflow.
const (
	maxWidth  = 1 << 16
	maxVocab  = 1 << 24
	maxLength = 1 << 24
)

var fields = append(modelFields(), trainFields()...)

// modelFields are the keys outside all sections and those of [model].
func modelFields() []field {
	return []field{
		{key: "preset", doc: "preset whose keys come first; the file's own replace them", at: func(c *Config) any { return &c.Preset }},
		{key: "name", doc: "name of the configuration; becomes the name of the model", at: func(c *Config) any { return &c.Name }},
		{key: "description", doc: "one sentence for people", at: func(c *Config) any { return &c.Description }},
		{"model.dim", "width of the residual stream", func(c *Config) any { return &c.Model.Dim }, 16, maxWidth, nil},
		{"model.layers", "number of blocks", func(c *Config) any { return &c.Model.Layers }, 1, 1024, nil},
		{"model.heads", "query heads", func(c *Config) any { return &c.Model.Heads }, 1, 1024, nil},
		{"model.kv_heads", "key/value heads; divides heads (default: heads)", func(c *Config) any { return &c.Model.KVHeads }, 1, 1024, nil},
		{"model.head_dim", "length of one head, even (default: dim/heads)", func(c *Config) any { return &c.Model.HeadDim }, 2, 1024, nil},
		{"model.ffn", "inner width of the feed-forward part", func(c *Config) any { return &c.Model.FFN }, 16, 4 * maxWidth, nil},
		{"model.ffn_kind", "feed-forward kind", func(c *Config) any { return &c.Model.FFNKind }, 0, 0, []string{FFNSwiGLU, FFNReLU2, FFNReLU2GLU}},
		{"model.vocab", "number of token ids", func(c *Config) any { return &c.Model.Vocab }, 2, maxVocab, nil},
		{"model.context", "largest number of positions", func(c *Config) any { return &c.Model.Context }, 1, maxLength, nil},
		{"model.rope_theta", "base of the rotary angles", func(c *Config) any { return &c.Model.RopeTheta }, 1, 1e12, nil},
		{"model.norm_eps", "added to mean squares under the root", func(c *Config) any { return &c.Model.NormEps }, 1e-12, 0.1, nil},
		{"model.tie_embeddings", "use the embedding matrix as the head", func(c *Config) any { return &c.Model.TieEmbeddings }, 0, 0, nil},
		{"model.embedding", "storage of the embedding matrix", func(c *Config) any { return &c.Model.Embedding }, 0, 0, []string{TypeF16, TypeQ8_0}},
		{"model.head", "storage of the head matrix", func(c *Config) any { return &c.Model.Head }, 0, 0, []string{TypeF16, TypeQ8_0}},
		{"model.group", "inputs that share one ternary scale; 0: the whole row", func(c *Config) any { return &c.Model.Group }, 0, 256, []string{"0", "64", "128", "256"}},
		{"model.qk_norm", "normalise queries and keys per head", func(c *Config) any { return &c.Model.QKNorm }, 0, 0, nil},
		{"model.sub_norm", "normalise the inputs of the output and down projections", func(c *Config) any { return &c.Model.SubNorm }, 0, 0, nil},
		{"model.logit_softcap", "c of c·tanh(logit/c); 0 turns it off", func(c *Config) any { return &c.Model.LogitSoftcap }, 0, 1e4, nil},
		{"model.residual_scalars", "per-layer scalars on the residual and the embedding", func(c *Config) any { return &c.Model.ResidualScalars }, 0, 0, nil},
		{"model.streams", "residual streams", func(c *Config) any { return &c.Model.Streams }, 1, 4, []string{"1", "2", "4"}},
		{"model.mhc", "how the mixing stays doubly stochastic", func(c *Config) any { return &c.Model.MHC }, 0, 0, []string{MHCBvN, MHCSinkhorn}},
		{"model.mhc_dynamic", "let the mixing depend on the input", func(c *Config) any { return &c.Model.MHCDynamic }, 0, 0, nil},
		{"model.sinkhorn_iters", "normalisations of the sinkhorn mixing", func(c *Config) any { return &c.Model.SinkhornIters }, 1, 100, nil},
	}
}

func fieldOf(key string) *field {
	for i := range fields {
		if fields[i].key == key {
			return &fields[i]
		}
	}
	return nil
}

// set stores v, a value as go-toml decodes it, and says what is wrong with it.
func (f *field) set(c *Config, v any) (what string) {
	wrong := func(want string) string { return fmt.Sprintf("%s is %s, not %s", show(v), kind(v), want) }
	switch p := f.at(c).(type) {
	case *string:
		s, ok := v.(string)
		if !ok {
			return wrong("a string")
		}
		if !utf8.ValidString(s) {
			return show(v) + " is not valid UTF-8"
		}
		*p = s
	case *bool:
		b, ok := v.(bool)
		if !ok {
			return wrong("true or false")
		}
		*p = b
	case *int:
		n, ok := integer(v)
		if !ok {
			return wrong("an integer")
		}
		// Out of the range of int means out of the range of the key as well.
		*p = int(max(min(n, math.MaxInt32), math.MinInt32))
	case *int64:
		n, ok := integer(v)
		if !ok {
			return wrong("an integer")
		}
		*p = n
	case *float64:
		switch n := v.(type) {
		case float64:
			*p = n
		case int64:
			*p = float64(n)
		default:
			return wrong("a number")
		}
	}
	return f.check(c)
}

// integer is v if it is an integer, or text that stands for one.
func integer(v any) (n int64, ok bool) {
	if text, is := v.(string); is {
		n, err := ParseSize(text)
		return n, err == nil
	}
	n, ok = v.(int64)
	return n, ok
}

// check says what is wrong with the value that stands in c.
func (f *field) check(c *Config) (what string) {
	var text string
	switch p := f.at(c).(type) {
	case *string:
		text = *p
		if f.oneOf == nil {
			return ""
		}
	case *bool:
		return ""
	case *int:
		text = fmt.Sprint(*p)
		if n := float64(*p); f.oneOf == nil {
			return outside(text, n, f.lo, f.hi)
		}
	case *int64:
		return outside(fmt.Sprint(*p), float64(*p), f.lo, f.hi)
	case *float64:
		return outside(fmt.Sprint(*p), *p, f.lo, f.hi)
	}
	for _, ok := range f.oneOf {
		if text == ok {
			return ""
		}
	}
	return fmt.Sprintf("%q is not one of %s", text, strings.Join(f.oneOf, ", "))
}

func outside(text string, v, lo, hi float64) string {
	if v >= lo && v <= hi { // false for NaN
		return ""
	}
	return fmt.Sprintf("%s is outside %s to %s", text, number(lo), number(hi))
}

func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e9 {
		return fmt.Sprint(int64(v))
	}
	return fmt.Sprint(v)
}

func kind(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a decimal number"
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

func show(v any) string {
	s := fmt.Sprint(v)
	if q, ok := v.(string); ok {
		s = fmt.Sprintf("%q", q)
	}
	if len(s) > 40 {
		s = s[:37] + "..."
	}
	return s
}
