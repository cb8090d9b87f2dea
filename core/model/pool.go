package model

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/numa"
)

// ErrPoolFull is wrapped by errors of a Pool that has no free page.
var ErrPoolFull = errors.New("model: no free page in the KV pool")

// Pool is memory for the keys and values of many sequences: pages of
// kernels.PageLen positions, all layers of a position in the same page. Pages
// are counted, so sequences can share a prefix. It is not safe for concurrent
// use, Forward included.
type Pool struct {
	kind       kernels.KVType
	slab       []byte
	pageBytes  int
	layerBytes int
	refs       []int32
	free       []int32  // stack of pages whose count is 0
	gpu        *gpuSlab // the memory if it is that of a device; then slab is nil
}

// PageBytes is the size of one page of a pool of m.
func PageBytes(m *Model, t kernels.KVType) int {
	return m.cfg.Layers * m.cfg.KVHeads * t.HeadBytes(m.cfg.HeadDim)
}

// maxPool bounds the bytes of a pool, which must fit an int and be plausible.
const maxPool = 1 << 46

// NewPool makes a pool of the given number of pages. Memory is taken from the
// system when a page is first written.
func NewPool(m *Model, pages int, t kernels.KVType) (*Pool, error) {
	if t != kernels.KVF16 && t != kernels.KVI8 {
		return nil, fmt.Errorf("model: unknown KV storage type %d", t)
	}
	size := PageBytes(m, t)
	return newPool(pages, size, size/m.cfg.Layers, t)
}

func newPool(pages, size, layerBytes int, t kernels.KVType) (*Pool, error) {
	p, err := emptyPool(pages, size, layerBytes, t)
	if err != nil {
		return nil, err
	}
	memory, err := numa.Alloc(pages*size, numa.Any, true)
	if err != nil {
		return nil, fmt.Errorf("model: a KV pool of %d bytes: %w", pages*size, err)
	}
	p.slab = memory.Bytes()
	runtime.AddCleanup(p, func(memory *numa.Memory) { _ = memory.Free() }, memory)
	return p, nil
}

// emptyPool is a pool without its memory.
func emptyPool(pages, size, layerBytes int, t kernels.KVType) (*Pool, error) {
	if pages < 1 || pages > maxPool/size {
		return nil, fmt.Errorf("model: a KV pool of %d pages of %d bytes: want 1 to %d pages", pages, size, maxPool/size)
	}
	p := &Pool{kind: t, pageBytes: size, layerBytes: layerBytes, refs: make([]int32, pages), free: make([]int32, pages)}
	for i := range p.free {
		p.free[i] = int32(pages - 1 - i)
	}
	return p, nil
}

// Pages is the number of pages; Free how many are not in use.
func (p *Pool) Pages() int { return len(p.refs) }

// Free is the number of pages that are not in use.
func (p *Pool) Free() int { return len(p.free) }

// Bytes is the size of the pool's memory.
func (p *Pool) Bytes() int64 { return int64(len(p.refs)) * int64(p.pageBytes) }

// Alloc takes a free page and gives it the count 1.
func (p *Pool) Alloc() (int32, error) {
	if len(p.free) == 0 {
		return 0, fmt.Errorf("%w: all %d are in use", ErrPoolFull, len(p.refs))
	}
	id := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.refs[id] = 1
	return id, nil
}

// Retain adds 1 to the count of a page in use.
func (p *Pool) Retain(id int32) { p.refs[id]++ }

// Release takes 1 from the count of a page; at 0 it is free.
func (p *Pool) Release(id int32) {
	if p.refs[id]--; p.refs[id] == 0 {
		p.free = append(p.free, id)
	}
}

// Copy makes page dst hold what page src does, of all positions and layers, so that a
// sequence can go on from the middle of a page that is shared. Both are in use.
func (p *Pool) Copy(dst, src int32) {
	if p.gpu != nil {
		p.gpu.copyPage(dst, src, p.pageBytes)
		return
	}
	copy(p.slab[int(dst)*p.pageBytes:][:p.pageBytes], p.slab[int(src)*p.pageBytes:])
}

// Refs is the count of a page.
func (p *Pool) Refs(id int32) int { return int(p.refs[id]) }

// Seq is the cache of one sequence: position i is in page Pages[i/PageLen] of a
// pool. The zero value is an empty sequence.
type Seq struct {
	Pages []int32
	// Len is the number of positions that hold keys and values.
	Len int
}

// Grow gives s the pages for n positions more than Len. At an error s is as it
// was.
func (p *Pool) Grow(s *Seq, n int) error {
	want := (s.Len + n + kernels.PageLen - 1) / kernels.PageLen
	if missing := want - len(s.Pages); missing > len(p.free) {
		return fmt.Errorf("%w: %d needed, %d of %d left", ErrPoolFull, missing, len(p.free), len(p.refs))
	}
	for len(s.Pages) < want {
		id, err := p.Alloc()
		if err != nil {
			return err
		}
		s.Pages = append(s.Pages, id)
	}
	return nil
}

// Truncate forgets the positions from n on and releases their pages.
func (p *Pool) Truncate(s *Seq, n int) {
	s.Len = min(s.Len, max(n, 0))
	keep := (s.Len + kernels.PageLen - 1) / kernels.PageLen
	for len(s.Pages) > keep {
		p.Release(s.Pages[len(s.Pages)-1])
		s.Pages = s.Pages[:len(s.Pages)-1]
	}
}
