package model

import (
	"fmt"
	"slices"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/kernels"
)

// Save writes m to a file of the architecture "nanochat", atomically. meta, such
// as a tokenizer's, takes the place of equal keys of m.Meta.
func (m *Model) Save(path string, meta ...gguf.KV) error {
	return m.SaveFS(fsx.OS(), path, meta...)
}

// SaveFS is Save on a given file system.
func (m *Model) SaveFS(fsys fsx.FS, path string, meta ...gguf.KV) error {
	if err := checkStorage(m.cfg); err != nil {
		return fmt.Errorf("%w; convert the model first", err)
	}
	if m.rope.interleaved {
		return fmt.Errorf("model: save %s: rotary pairs are interleaved; convert the model first", path)
	}
	keys := []gguf.KV{{Key: archKey, Value: gguf.V(arch)}, {Key: versionKey, Value: gguf.V(uint32(formatVersion))}}
	for _, k := range modelKeys {
		if k.omit == nil || !k.omit(m) {
			keys = append(keys, gguf.KV{Key: k.name, Value: k.put(m)})
		}
	}
	sources, err := m.sources()
	if err != nil {
		return fmt.Errorf("model: save %s: %w", path, err)
	}
	return gguf.Write(fsys, path, mergeMeta(keys, m.meta, meta), sources, gguf.WriteOptions{})
}

// mergeMeta is keys, then those of old and of extra that pass and are not in
// keys; extra wins over old.
func mergeMeta(keys, old, extra []gguf.KV) []gguf.KV {
	at := map[string]int{}
	for i, kv := range keys {
		at[kv.Key] = i
	}
	fixed := len(keys)
	out := slices.Clone(keys)
	for _, kv := range slices.Concat(old, extra) {
		i, ok := at[kv.Key]
		switch {
		case !passes(kv.Key, arch), ok && i < fixed:
		case ok:
			out[i] = kv
		default:
			at[kv.Key] = len(out)
			out = append(out, kv)
		}
	}
	return out
}

// sources lists the tensors of m for a nanochat file.
func (m *Model) sources() ([]gguf.Source, error) {
	var all []gguf.Source
	for _, s := range m.slots() {
		switch {
		case s.vec != nil:
			if s.optional && *s.vec == nil {
				continue
			}
			all = append(all, gguf.FromBytes(s.name, gguf.F32, ggmlDims(s.dims), gguf.Bytes(*s.vec)))
		case s.dense != nil:
			all = append(all, gguf.FromBytes(s.name, gguf.Type(s.dense.Type), []uint64{uint64(s.cols), uint64(s.rows)}, s.dense.Data))
		case s.lin.ternary == nil:
			return nil, fmt.Errorf("tensor %q is not ternary; convert the model first", s.name)
		default:
			w := s.lin.ternary
			all = append(all,
				gguf.FromBytes(s.name+".t", gguf.I8, tileDims(w), w.Tiles),
				gguf.FromBytes(s.name+".s", gguf.F16, scaleDims(w), gguf.Bytes(w.Scales)))
			if w.Gain != 1 {
				all = append(all, gguf.FromBytes(s.name+".g", gguf.F32, []uint64{1}, gguf.Bytes([]float32{w.Gain})))
			}
		}
	}
	return all, nil
}

// ggmlDims turns sizes around: ggml has the fastest first.
func ggmlDims(dims []int) []uint64 {
	out := make([]uint64, len(dims))
	for i, d := range dims {
		out[len(dims)-1-i] = uint64(d)
	}
	return out
}

func tileDims(w *kernels.Ternary) []uint64 {
	return []uint64{64, uint64(w.ColTiles()), uint64(w.Blocks())}
}

func scaleDims(w *kernels.Ternary) []uint64 {
	return []uint64{kernels.TileSide, uint64(w.Groups()), uint64(w.Blocks())}
}
