package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Config is one complete, checked configuration.
type Config struct {
	// Name and Description are for people; Name also names the model file inside.
	Name, Description string
	// Preset is the preset that a file started from.
	Preset string
	// Model is the shape of the network.
	Model Model
	// The rest is for training.
	Data      Data
	Train     Train
	Schedule  Schedule
	Optim     Optim
	Anomaly   Anomaly
	Telemetry Telemetry

	source map[string]string
}

// Error reports one wrong key or value.
type Error struct {
	// Source is the place: "run.toml:12", "preset tiny:3", "--set" or "" for a
	// Model that came from no file.
	Source string
	// Key is the whole key, "model.vocab"; empty for a file that is not TOML.
	Key string
	// What is the fault and Hint what to do about it; Hint may be empty.
	What, Hint string
}

func (e *Error) Error() string {
	parts := []string{"config"}
	for _, p := range []string{e.Source, e.Key} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	s := strings.Join(append(parts, e.What), ": ")
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Parse reads TOML from b and then applies sets, each "key=value". path names b
// in errors; nothing is opened. An error is an *Error.
func Parse(path string, b []byte, sets ...string) (*Config, error) {
	c := defaultConfig()
	if err := c.apply(path, b); err != nil {
		return nil, err
	}
	for _, s := range sets {
		if err := c.applySet(s); err != nil {
			return nil, err
		}
	}
	c.derive()
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// Source says where the value of key came from: a file and line, "--set",
// "default", or what it was derived from. It is empty for an unknown key.
func (c *Config) Source(key string) string {
	if s := c.source[key]; s != "" {
		return s
	}
	if fieldOf(key) == nil {
		return ""
	}
	return "default"
}

// Setting is one key of a Config, ready to be shown.
type Setting struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source string `json:"source"`
	Doc    string `json:"doc"`
}

// Settings lists every key in the order of the documentation.
func (c *Config) Settings() []Setting {
	out := make([]Setting, 0, len(fields))
	for _, f := range fields {
		s := Setting{Key: f.key, Source: c.Source(f.key), Doc: f.doc}
		switch p := f.at(c).(type) {
		case *string:
			s.Value = *p
		case *bool:
			s.Value = *p
		case *int:
			s.Value = *p
		case *int64:
			s.Value = *p
		case *float64:
			s.Value = *p
		}
		out = append(out, s)
	}
	return out
}

// Validate checks every range of m and the relations between its parts. The
// error is an *Error without a source.
func (m Model) Validate() error {
	c := &Config{Model: m}
	return c.validateModel()
}

func (c *Config) validate() error {
	if err := c.check(false); err != nil {
		return err
	}
	if err := c.validateModel(); err != nil {
		return err
	}
	return c.validateTrain()
}

// check checks the range of every key in [model], or of every other one.
func (c *Config) check(ofModel bool) error {
	for i := range fields {
		f := &fields[i]
		if strings.HasPrefix(f.key, "model.") != ofModel {
			continue
		}
		what := f.check(c)
		if what == "" {
			continue
		}
		e := &Error{Source: c.source[f.key], Key: f.key, What: what}
		if e.Source == "" && c.source != nil {
			e.What, e.Hint = "is required", fmt.Sprintf("add it: %s (%s to %s)", f.doc, number(f.lo), number(f.hi))
		}
		return e
	}
	return nil
}

func (c *Config) validateModel() error {
	if err := c.check(true); err != nil {
		return err
	}
	m := &c.Model
	return c.relations([]relation{
		{m.Heads%m.KVHeads != 0, "model.kv_heads", fmt.Sprintf("%d does not divide %d heads", m.KVHeads, m.Heads), ""},
		{m.HeadDim%2 != 0, "model.head_dim", fmt.Sprintf("%d is odd", m.HeadDim), "rotary positions turn pairs of elements"},
		{m.Embedding == TypeQ8_0 && m.Dim%32 != 0, "model.embedding", fmt.Sprintf("q8_0 needs a dim that is a multiple of 32, not %d", m.Dim), "use f16"},
		{!m.TieEmbeddings && m.Head == TypeQ8_0 && m.Dim%32 != 0, "model.head", fmt.Sprintf("q8_0 needs a dim that is a multiple of 32, not %d", m.Dim), "use f16"},
	})
}

// validateTrain checks the relations between keys of training.
func (c *Config) validateTrain() error {
	t, s, total := &c.Train, &c.Schedule, c.Train.TotalSteps()
	decay := 0
	if s.Shape == ShapeWSD {
		decay = s.DecaySteps(total)
	}
	relations := []relation{
		{t.Steps > 0 && t.Tokens > 0, "train.tokens", "train.steps is given as well", "give one of them"},
		{t.Device != DeviceCPU && t.Devices > 1 && t.Rows%(t.Devices*max(t.MicroRows, 1)) != 0, "train.devices",
			fmt.Sprintf("%d of them with %d rows at a time do not divide %d rows", t.Devices, t.MicroRows, t.Rows), "set train.rows to a multiple of both, or lower train.micro_rows"},
		{t.Rows%t.MicroRows != 0, "train.micro_rows", fmt.Sprintf("%d does not divide %d rows", t.MicroRows, t.Rows), ""},
		{t.SeqLen > c.Model.Context, "train.seq_len", fmt.Sprintf("%d is more than the %d positions of the model", t.SeqLen, c.Model.Context), "raise model.context or lower it"},
		{int64(t.Rows)*int64(t.SeqLen) > math.MaxInt32, "train.rows", fmt.Sprintf("%d rows of %d tokens are too many for one step", t.Rows, t.SeqLen), ""},
		{s.Decay >= 1 && s.Decay != math.Trunc(s.Decay), "schedule.decay", fmt.Sprintf("%v is neither a share below 1 nor a whole number of steps", s.Decay), ""},
		{total > 0 && s.Shape != ShapeConstant && s.Warmup+decay > total, "schedule.warmup",
			fmt.Sprintf("%d steps of warm-up and %d of decay do not fit a run of %d", s.Warmup, decay, total), "lower schedule.warmup or schedule.decay, or train longer"},
	}
	for _, r := range []struct {
		key  string
		rule *Rule
	}{{"matrix", &c.Optim.Matrix}, {"embedding", &c.Optim.Embedding}, {"head", &c.Optim.Head}, {"scalar", &c.Optim.Scalar}, {"mhc", &c.Optim.MHC}} {
		relations = append(relations, relation{r.rule.LR*r.rule.WeightDecay > 1, "optim." + r.key + ".weight_decay",
			fmt.Sprintf("%v times the learning rate %v is above 1", r.rule.WeightDecay, r.rule.LR), "lower one of them"})
	}
	return c.relations(relations)
}

// A relation between keys that must not hold.
type relation struct {
	bad             bool
	key, what, hint string
}

func (c *Config) relations(all []relation) error {
	for _, r := range all {
		if r.bad {
			return &Error{Source: c.source[r.key], Key: r.key, What: r.what, Hint: r.hint}
		}
	}
	return nil
}

// derive fills the keys whose default is another key.
func (c *Config) derive() {
	m := &c.Model
	if m.KVHeads == 0 && c.source["model.kv_heads"] == "" {
		m.KVHeads = m.Heads
		c.source["model.kv_heads"] = "derived from model.heads"
	}
	if m.HeadDim == 0 && m.Heads > 0 && c.source["model.head_dim"] == "" {
		m.HeadDim = m.Dim / m.Heads
		c.source["model.head_dim"] = "derived from model.dim and model.heads"
	}
	c.deriveTrain()
}

// apply reads one TOML document over c.
func (c *Config) apply(path string, b []byte) error {
	var doc map[string]any
	if err := toml.Unmarshal(b, &doc); err != nil {
		e := &Error{Source: path, What: strings.TrimPrefix(err.Error(), "toml: ")}
		e.Hint = syntaxHint(e.What)
		var de *toml.DecodeError
		if errors.As(err, &de) {
			line, _ := de.Position()
			e.Source = fmt.Sprintf("%s:%d", path, line)
		}
		return e
	}
	lines := keyLines(b)
	values := map[string]any{}
	flatten(values, "", doc)
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	// The first fault in the file is the one to report.
	sort.Slice(keys, func(i, j int) bool {
		a, b := keys[i], keys[j]
		if lines[a] != lines[b] {
			return lines[a] < lines[b]
		}
		return a < b
	})
	if v, ok := values["preset"]; ok {
		if err := c.applyPreset(fmt.Sprintf("%s:%d", path, lines["preset"]), v); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if err := c.setKey(fmt.Sprintf("%s:%d", path, lines[k]), k, values[k]); err != nil {
			return err
		}
	}
	return nil
}

// applyPreset reads the preset that a file at source starts from.
func (c *Config) applyPreset(source string, v any) error {
	name, _ := v.(string)
	b, err := presetText(name)
	if err == nil {
		return c.apply("preset "+name, b)
	}
	e := &Error{}
	errors.As(err, &e)
	e.Source, e.Key = source, "preset"
	return e
}

// fromSet is the source of what the command line gave.
const fromSet = "--set"

// applySet reads one "key=value" of the command line. The value is TOML, or
// else a bare string.
func (c *Config) applySet(s string) error {
	key, text, ok := strings.Cut(s, "=")
	key, text = strings.TrimSpace(key), strings.TrimSpace(text)
	if !ok || key == "" {
		return &Error{Source: fromSet, Key: strings.TrimSpace(s), What: "has no value", Hint: "write key=value, as in model.vocab=16384"}
	}
	var doc map[string]any
	value := any(text)
	if err := toml.Unmarshal([]byte("v = "+text), &doc); err == nil && len(doc) == 1 {
		value = doc["v"]
	}
	if key == "preset" {
		return &Error{Source: fromSet, Key: key, What: "stands only in a file", Hint: "begin the file with preset = \"NAME\""}
	}
	return c.setKey(fromSet, key, value)
}

func (c *Config) setKey(source, key string, v any) error {
	f := fieldOf(key)
	if f == nil {
		return unknownKey(source, key)
	}
	if what := f.set(c, v); what != "" {
		return &Error{Source: source, Key: key, What: what, Hint: f.doc}
	}
	c.source[key] = source
	return nil
}

// sections are the tables of a file.
var sections = func() (out []string) {
	for i := range fields {
		key := fields[i].key
		for at := 0; at < len(key); at++ {
			if key[at] == '.' && !slices.Contains(out, key[:at]) {
				out = append(out, key[:at])
			}
		}
	}
	return out
}()

func unknownKey(source, key string) error {
	if slices.Contains(sections, key) {
		return &Error{Source: source, Key: key, What: "is a section, not a key", Hint: "write [" + key + "] and its keys below"}
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.key
	}
	e := &Error{Source: source, Key: key, What: "unknown key"}
	if near := Nearest(key, names); near != "" {
		e.Hint = "did you mean " + near + "?"
		return e
	}
	// The keys of its section, or those outside and the sections.
	section, _, _ := cutLast(key)
	e.Hint = "the sections are " + strings.Join(sections, ", ")
	if slices.Contains(sections, section) {
		var own []string
		for _, n := range names {
			if s, last, ok := cutLast(n); ok && s == section {
				own = append(own, last)
			}
		}
		if len(own) > 0 {
			e.Hint = "the keys of [" + section + "] are " + strings.Join(own, ", ")
		}
	}
	return e
}

// cutLast cuts a key at its last dot.
func cutLast(key string) (section, last string, ok bool) {
	i := strings.LastIndexByte(key, '.')
	if i < 0 {
		return "", key, false
	}
	return key[:i], key[i+1:], true
}

// flatten writes the leaves of doc under dotted keys. An empty table is a leaf
// unless it is a known section, so that an unknown one is still reported.
func flatten(dst map[string]any, prefix string, doc map[string]any) {
	for k, v := range doc {
		key := prefix + k
		sub, ok := v.(map[string]any)
		switch {
		case !ok:
			dst[key] = v
		case len(sub) > 0:
			flatten(dst, key+".", sub)
		case !slices.Contains(sections, key):
			dst[key] = v
		}
	}
}

// keyLines maps every dotted key of a valid document to its line.
func keyLines(b []byte) map[string]int {
	lines := map[string]int{}
	var p unstable.Parser
	p.Reset(b)
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = dotted(&p, e, "", lines)
		case unstable.KeyValue:
			walkKeyValue(&p, e, table, lines)
		}
	}
	return lines
}

func walkKeyValue(p *unstable.Parser, e *unstable.Node, prefix string, lines map[string]int) {
	key := dotted(p, e, prefix, lines)
	if v := e.Value(); v.Kind == unstable.InlineTable {
		for it := v.Children(); it.Next(); {
			walkKeyValue(p, it.Node(), key, lines)
		}
	}
}

// dotted is the full key of a table or key-value and records its line.
func dotted(p *unstable.Parser, e *unstable.Node, prefix string, lines map[string]int) string {
	key, line := prefix, 0
	for it := e.Key(); it.Next(); {
		n := it.Node()
		if key != "" {
			key += "."
		}
		key += string(n.Data)
		line = p.Shape(n.Raw).Start.Line
	}
	lines[key] = line
	return key
}
