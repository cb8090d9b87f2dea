package model

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
)

// Load makes a model of an open file, which must stay open as long as the model
// is used: tiles and embeddings are views of it.
//
// Architectures are "nanochat" and, foreign, "llama", "bitnet", "bitnet-b1.58" and
// "bitnet-25". Whatever is missing, unknown, or has a wrong type or shape is a
// *gguf.FormatError that names it; so are invalid trit codes and scales that are
// not finite.
func Load(f *gguf.File, o Options) (*Model, error) {
	l := &loader{f: f, m: &Model{set: o.withDefaults().Set, hold: f}}
	if err := l.structure(); err != nil {
		return nil, err
	}
	m := l.m
	switch {
	case o.Context > m.cfg.Context:
		return nil, &LimitError{f.Path, o.Context, m.cfg.Context}
	case o.Context > 0:
		m.cfg.Context = o.Context
	}
	m.rope.limit = m.cfg.Context
	for _, kv := range f.Meta {
		if passes(kv.Key, m.arch) {
			m.meta = append(m.meta, kv)
		}
	}
	if m.ropeFactors != nil {
		m.rope.factors = make([]float64, len(m.ropeFactors))
		for i, v := range m.ropeFactors {
			if m.rope.factors[i] = float64(v); v <= 0 {
				return nil, f.Errorf(f.Tensor("rope_freqs.weight"), "factor %d is %v, expected more than 0", i, v)
			}
		}
	}
	if err := parallel(len(l.checks), func(i int) error { return l.checks[i]() }); err != nil {
		return nil, err
	}
	m.name()
	if err := m.finish(o); err != nil {
		return nil, f.Errorf(nil, "%v", err)
	}
	if o.HugePages {
		_ = f.Release() // what it refuses costs memory, nothing else
	}
	return m, nil
}

// ReadConfig is the shape of the network in f, of which it reads the header only, so
// f may come from gguf.ReadInfo. It finds what Load finds but for faults of the
// contents of tensors. The Group of a foreign model is that of its storage types;
// Load may find shorter groups in floats that are ternary.
func ReadConfig(f *gguf.File) (config.Model, error) {
	l := &loader{f: f, m: &Model{}, headerOnly: true}
	if err := l.structure(); err != nil {
		return config.Model{}, err
	}
	l.m.name()
	if _, err := l.m.inputKinds(); err != nil {
		return config.Model{}, f.Errorf(nil, "%v", err)
	}
	return l.m.cfg, nil
}

// loader fills a model from a file.
type loader struct {
	f      *gguf.File
	m      *Model
	used   map[string]bool
	checks []func() error // of the contents, run in parallel
	// headerOnly leaves the data of all tensors alone, and checks empty.
	headerOnly bool
}

// structure reads the configuration and makes tensors parts of the model.
func (l *loader) structure() error {
	name, err := l.f.String(archKey)
	if err != nil {
		return err
	}
	l.m.arch = name
	switch name {
	case arch:
		return l.own()
	case archLlama, archBitnet, archBitnetB158, archBitnet25:
		return l.foreign()
	}
	return l.f.Errorf(nil, "architecture %q is not supported; supported are %q, %q, %q, %q and %q",
		name, arch, archLlama, archBitnet, archBitnetB158, archBitnet25)
}

// name completes the configuration by what the tensors are.
func (m *Model) name() {
	if m.arch != arch {
		m.cfg.Group = m.shortestGroup()
	}
	if m.cfg.TieEmbeddings {
		m.head = m.embed
	}
	m.cfg.Embedding, m.cfg.Head = storageName(&m.embed), storageName(&m.head)
}

// own loads a nanochat file.
func (l *loader) own() error {
	m, f := l.m, l.f
	version, err := f.Uint(versionKey)
	if err != nil {
		return err
	}
	if version != formatVersion {
		return f.Errorf(nil, "%s is %d, this program reads %d", versionKey, version, formatVersion)
	}
	m.cfg = config.DefaultModel()
	m.rope.scale, m.rope.rotary = 1, 0
	known := map[string]bool{versionKey: true}
	for _, k := range modelKeys {
		known[k.name] = true
		if _, ok := f.Get(k.name); !ok && k.omit != nil {
			continue
		}
		if err := k.take(f, k.name, m); err != nil {
			return err
		}
	}
	for _, kv := range f.Meta {
		own := func(prefix string) bool { return strings.HasPrefix(kv.Key, prefix) }
		if own(arch+".") && !known[kv.Key] && !slices.ContainsFunc(ownKeys, own) {
			return f.Errorf(nil, "metadata key %q is unknown; was the file written by a newer version?", kv.Key)
		}
	}
	if m.rope.rotary == 0 {
		m.rope.rotary = m.cfg.HeadDim
	}
	if err := l.shape(); err != nil {
		return err
	}
	return l.tensors(l.ownLinear, func(s *slot, t *gguf.Tensor) error {
		if t.Type != gguf.F16 && t.Type != gguf.Q8_0 {
			return f.Errorf(t, "type is %s, expected F16 or Q8_0", t.Type)
		}
		return nil
	})
}

// shape checks the configuration and makes the empty layers.
func (l *loader) shape() error {
	m := l.m
	if err := checkConfig(m.cfg); err != nil {
		return l.f.Errorf(nil, "%v", err)
	}
	if r := m.rope.rotary; r < 2 || r > m.cfg.HeadDim || r%2 != 0 {
		return l.f.Errorf(nil, "%d rotary dimensions, expected an even number up to the head dimension %d", r, m.cfg.HeadDim)
	}
	if !positive(m.rope.scale) || m.rope.scale > 1 {
		return l.f.Errorf(nil, "rope scale is %v, expected more than 0 and at most 1", m.rope.scale)
	}
	m.rope.base = m.cfg.RopeTheta
	// Every layer has at least one tensor of its own, so a file bounds their number.
	if m.cfg.Layers > len(l.f.Tensors) {
		return l.f.Errorf(nil, "%d layers, but only %d tensors", m.cfg.Layers, len(l.f.Tensors))
	}
	if m.cfg.Streams > 1 && m.cfg.MHCDynamic { // sites allocate what a file must then fill
		need := uint64(2*m.cfg.Layers) * uint64(m.cfg.Streams) * uint64(m.cfg.Dim) * 4
		if need > uint64(l.f.Size) {
			return l.f.Errorf(nil, "dynamic hyper-connections need more than %d bytes, the file has %d", need, l.f.Size)
		}
	}
	m.layers = make([]layer, m.cfg.Layers)
	for i := range m.layers {
		sites, err := newSites(m.cfg)
		if err != nil {
			return l.f.Errorf(nil, "%v", err)
		}
		m.layers[i].mhcAttn, m.layers[i].mhcFFN = sites[0], sites[1]
	}
	return nil
}

// storageName is the configuration's name for the type of w.
func storageName(w *kernels.Dense) string { return strings.ToLower(gguf.Type(w.Type).String()) }

// tensors fills every slot and reports tensors that no slot wants. linear loads a
// projection; dense checks the tensor of an embedding.
func (l *loader) tensors(linear func(s *slot) error, dense func(s *slot, t *gguf.Tensor) error) error {
	l.used = map[string]bool{}
	for _, s := range l.m.slots() {
		var err error
		switch {
		case s.lin != nil:
			err = linear(&s)
		case s.dense != nil:
			var t *gguf.Tensor
			if t, err = l.need(s.name); err != nil {
				break
			}
			if err = dense(&s, t); err == nil {
				err = l.importDense(s.dense, t, s.rows, s.cols)
			}
		case s.optional && l.f.Tensor(s.name) == nil:
		default:
			err = l.vector(&s)
		}
		if err != nil {
			return err
		}
	}
	for i := range l.f.Tensors {
		if t := &l.f.Tensors[i]; !l.used[t.Name] {
			return l.f.Errorf(t, "no part of a %s model has this tensor", l.m.arch)
		}
	}
	return nil
}

// need returns a tensor that must be there.
func (l *loader) need(name string) (*gguf.Tensor, error) {
	t := l.f.Tensor(name)
	if t == nil {
		return nil, l.f.Errorf(nil, "tensor %q is missing", name)
	}
	l.used[name] = true
	return t, nil
}

// typed is need for a tensor of one type and shape.
func (l *loader) typed(name string, typ gguf.Type, dims ...uint64) (*gguf.Tensor, error) {
	t, err := l.need(name)
	if err != nil {
		return nil, err
	}
	if !t.Is(typ, dims...) {
		return nil, l.f.Errorf(t, "is %s %v, expected %s %v", t.Type, t.Dims, typ, dims)
	}
	return t, nil
}

// vector loads a float32 tensor into memory of its own.
func (l *loader) vector(s *slot) error {
	t, err := l.typed(s.name, gguf.F32, ggmlDims(s.dims)...)
	if err != nil || l.headerOnly {
		return err
	}
	*s.vec = slices.Clone(gguf.View[float32](t.Data))
	for i, v := range *s.vec {
		if v-v != 0 {
			return l.f.Errorf(t, "value %d is %v", i, v)
		}
	}
	return nil
}

// matrix makes w a view of t.
func (l *loader) matrix(w *kernels.Dense, t *gguf.Tensor, rows, cols int) error {
	if !t.Is(t.Type, uint64(cols), uint64(rows)) {
		return l.f.Errorf(t, "is %v, expected [%d %d]", t.Dims, cols, rows)
	}
	*w = kernels.Dense{Rows: rows, Cols: cols, Type: kernels.DType(t.Type), Data: t.Data}
	if l.headerOnly {
		return nil
	}
	l.checks = append(l.checks, func() error {
		if i := notFinite(w); i >= 0 {
			return l.f.Errorf(t, "the value or scale at byte %d is not finite", i)
		}
		return nil
	})
	return nil
}

// notFinite is where w holds a value or a scale that is NaN or infinite, or -1.
func notFinite(w *kernels.Dense) int {
	switch w.Type {
	case kernels.Q8_0:
		for i := 0; i+34 <= len(w.Data); i += 34 {
			if w.Data[i+1]&0x7c == 0x7c {
				return i
			}
		}
	case kernels.F16, kernels.BF16:
		exponent := uint64(0x7c007c007c007c00)
		if w.Type == kernels.BF16 {
			exponent = 0x7f807f807f807f80
		}
		const low, high = 0x7fff7fff7fff7fff, 0x8000800080008000
		i := 0
		for ; i+8 <= len(w.Data); i += 8 {
			// A lane of v is 0 exactly where all exponent bits are set.
			v := binary.LittleEndian.Uint64(w.Data[i:])&exponent ^ exponent
			if (v+low)&high != high {
				return i
			}
		}
		for ; i+2 <= len(w.Data); i += 2 {
			if e := uint16(exponent); binary.LittleEndian.Uint16(w.Data[i:])&e == e {
				return i
			}
		}
	case kernels.F32:
		for i := 0; i+4 <= len(w.Data); i += 4 {
			if v := math.Float32frombits(binary.LittleEndian.Uint32(w.Data[i:])); v-v != 0 {
				return i
			}
		}
	}
	return -1
}

// checkBlocks is the number of tile rows of a matrix that are checked together.
const checkBlocks = 32

// ownLinear makes a projection of NAME.t, NAME.s and perhaps NAME.g.
func (l *loader) ownLinear(s *slot) error {
	group := l.m.cfg.Group
	if group == 0 {
		group = s.cols
	}
	w := &kernels.Ternary{Rows: s.rows, Cols: s.cols, Group: group, Gain: 1}
	t, err := l.typed(s.name+".t", gguf.I8, tileDims(w)...)
	if err != nil {
		return err
	}
	scales, err := l.typed(s.name+".s", gguf.F16, scaleDims(w)...)
	if err != nil {
		return err
	}
	var gain *gguf.Tensor
	if l.f.Tensor(s.name+".g") != nil {
		if gain, err = l.typed(s.name+".g", gguf.F32, 1); err != nil {
			return err
		}
	}
	s.lin.ternary = w
	if l.headerOnly {
		return nil
	}
	if gain != nil {
		w.Gain = gguf.View[float32](gain.Data)[0]
	}
	w.Tiles, w.Scales = t.Data, gguf.View[uint16](scales.Data)
	if !kernels.Aligned(w.Tiles) { // of a file written with a smaller alignment
		w.Tiles = kernels.AlignedBytes(len(t.Data))
		copy(w.Tiles, t.Data)
	}
	l.checkLinear(w, t, scales)
	return nil
}

// checkLinear queues the checks of a matrix that stands in tensors t and scales.
func (l *loader) checkLinear(w *kernels.Ternary, t, scales *gguf.Tensor) {
	l.checks = append(l.checks, func() error {
		if err := ternary.CheckScales(w); err != nil {
			return l.f.Errorf(scales, "%v", err)
		}
		return nil
	})
	for b := 0; b < w.Blocks(); b += checkBlocks {
		l.checks = append(l.checks, func() error {
			if err := ternary.CheckTiles(w, b, b+checkBlocks); err != nil {
				return l.f.Errorf(t, "%v", err)
			}
			return nil
		})
	}
}
