package model

import (
	"fmt"
	"runtime"

	"github.com/architehc/nanochat/kernels/numa"
)

// moveToHugePages copies tiles, embedding, head and dense projections into one
// block of huge pages, which large matrices are read from with fewer misses of
// the address translation. The block is freed with the model.
func (m *Model) moveToHugePages() error {
	var parts []*[]byte
	if !m.cfg.TieEmbeddings {
		parts = append(parts, &m.head.Data)
	}
	parts = append(parts, &m.embed.Data)
	for i := range m.layers {
		for _, p := range m.layers[i].projections() {
			switch {
			case p.ternary != nil:
				parts = append(parts, &p.ternary.Tiles)
			case p.dense != nil:
				parts = append(parts, &p.dense.Data)
			}
		}
	}
	total := 0
	at := make([]int, len(parts))
	for i, p := range parts {
		at[i] = total
		total += (len(*p) + 63) &^ 63
	}
	memory, err := numa.Alloc(total, numa.Any, true)
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	block := memory.Bytes()
	_ = parallel(len(parts), func(i int) error { // no part fails
		to := block[at[i] : at[i]+len(*parts[i]) : at[i]+len(*parts[i])]
		copy(to, *parts[i])
		*parts[i] = to
		return nil
	})
	if m.cfg.TieEmbeddings {
		m.head.Data = m.embed.Data
	}
	runtime.AddCleanup(m, func(memory *numa.Memory) { _ = memory.Free() }, memory)
	return nil
}
