package model

import (
	"fmt"
	"runtime"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/numa"
)

// moveToHugePages copies tiles, scales, embedding, head and dense projections, in
// the order of their use, into one block of huge pages, which large matrices are
// read from with fewer misses of the address translation. The block is freed with
// the model.
func (m *Model) moveToHugePages() error {
	type part struct {
		data []byte
		set  func([]byte)
	}
	var parts []part
	dense := func(w *kernels.Dense) {
		parts = append(parts, part{w.Data, func(b []byte) { w.Data = b }})
	}
	for i := range m.layers {
		for _, p := range m.layers[i].projections() {
			if w := p.ternary; w != nil {
				parts = append(parts,
					part{w.Tiles, func(b []byte) { w.Tiles = b }},
					part{gguf.Bytes(w.Scales), func(b []byte) { w.Scales = gguf.View[uint16](b) }})
			} else if p.dense != nil {
				dense(p.dense)
			}
		}
	}
	if !m.cfg.TieEmbeddings {
		dense(&m.head)
	}
	dense(&m.embed)
	total := 0
	at := make([]int, len(parts))
	for i, p := range parts {
		at[i] = total
		total += (len(p.data) + 63) &^ 63
	}
	memory, err := numa.Alloc(total, numa.Any, true)
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	block := memory.Bytes()
	_ = parallel(len(parts), func(i int) error { // no part fails
		n := len(parts[i].data)
		to := block[at[i] : at[i]+n : at[i]+n]
		copy(to, parts[i].data)
		parts[i].set(to)
		return nil
	})
	if m.cfg.TieEmbeddings {
		m.head.Data = m.embed.Data
	}
	runtime.AddCleanup(m, func(memory *numa.Memory) { _ = memory.Free() }, memory)
	return nil
}
