package numa

import (
	"errors"
	"fmt"
	"sync"
)

// Values of a node argument that are no node.
const (
	// Any leaves the place to the system: the node of the thread that first writes.
	Any = -1
	// Interleave spreads pages evenly over all nodes.
	Interleave = -2
)

// HugePage is the alignment and the least size of memory with huge pages.
const HugePage = 2 << 20

// Memory is a zeroed block outside the Go heap.
type Memory struct {
	bytes   []byte // what the user sees, aligned to a page
	mapping []byte // all that was mapped
	page    int
	once    sync.Once
	err     error

	// Policy says how the block was placed: "any", "mbind", "first touch", or "heap"
	// on systems where it is ordinary Go memory.
	Policy string
	// Huge says whether the system was asked for huge pages and agreed. It may
	// still have none free.
	Huge bool
	// Note says why a wish was not met; empty if all were.
	Note string
}

// Alloc maps size zeroed bytes, aligned to a page, on a node of Read() by its ID,
// or Any, or Interleave. With huge, blocks of at least HugePage are aligned to
// huge pages and ask for them.
//
// A wish that the system cannot meet is no error: the block is usable, and Note
// tells. Placement is a preference: if the node is full, other nodes serve.
func Alloc(size, node int, huge bool) (*Memory, error) {
	if size < 0 {
		return nil, fmt.Errorf("numa: cannot allocate %d bytes", size)
	}
	if node < Interleave {
		return nil, fmt.Errorf("numa: no node %d: want a node's ID, Any or Interleave", node)
	}
	if size == 0 {
		return &Memory{Policy: "any"}, nil
	}
	m, err := mapMemory(size, huge && size >= HugePage)
	if err != nil {
		return nil, fmt.Errorf("numa: map %d bytes: %w", size, err)
	}
	if node != Any {
		if err := m.Place(0, size, node); err != nil {
			_ = m.Free()
			return nil, err
		}
	}
	return m, nil
}

// Bytes is the block. It must not be used after Free.
func (m *Memory) Bytes() []byte { return m.bytes }

// Place puts the pages of bytes lo ≤ i < hi on a node, or Interleave. It is
// meant for blocks that nothing was written to yet: it may write zeros, and moves
// no pages. lo is rounded down and hi up to pages, so neighbouring parts should
// be split at PageSize.
func (m *Memory) Place(lo, hi, node int) error {
	if lo < 0 || hi < lo || hi > len(m.bytes) {
		return fmt.Errorf("numa: part %d..%d of a block of %d bytes", lo, hi, len(m.bytes))
	}
	t := Read()
	if node != Interleave && t.index(node) < 0 {
		return fmt.Errorf("numa: no node %d; this machine has %v", node, t.ids())
	}
	if lo == hi {
		return nil
	}
	lo -= lo % m.PageSize()
	return m.place(t, lo, hi, node)
}

// PageSize is the unit of placement of m: HugePage if m has huge pages.
func (m *Memory) PageSize() int {
	if m.Huge {
		return HugePage
	}
	return max(m.page, 1)
}

// Free returns the block to the system. It may be called more than once.
func (m *Memory) Free() error {
	m.once.Do(func() {
		m.bytes = nil
		if m.mapping != nil {
			m.err = unmap(m.mapping)
			m.mapping = nil
		}
	})
	return m.err
}

// note adds a reason why a wish was not met.
func (m *Memory) note(err error) {
	if m.Note != "" {
		m.Note += "; "
	}
	m.Note += err.Error()
}

func (t Topology) index(id int) int {
	for i, n := range t.Nodes {
		if n.ID == id {
			return i
		}
	}
	return -1
}

func (t Topology) ids() []int {
	ids := make([]int, len(t.Nodes))
	for i, n := range t.Nodes {
		ids[i] = n.ID
	}
	return ids
}

// errNoCPU says that first touch cannot reach a node.
var errNoCPU = errors.New("numa: the node has no CPU this process may use")

// firstTouch writes a zero to every page of b from a CPU of the node.
func firstTouch(b []byte, page int, n Node) error {
	allowed := map[int]bool{}
	for _, c := range Affinity() {
		allowed[c] = true
	}
	for _, c := range n.CPUs {
		if !allowed[c] {
			continue
		}
		done := make(chan error)
		go func() { // a goroutine of its own: its thread may stay bound if restoring fails
			var err error
			defer func() {
				if p := recover(); p != nil { // as where the system has no page to give
					err = fmt.Errorf("numa: writing to new memory: %v", p)
				}
				done <- err
			}()
			old, err := Bind(c)
			if err == nil {
				for i := 0; i < len(b); i += page {
					b[i] = 0
				}
				Unbind(old)
			}
		}()
		return <-done
	}
	return errNoCPU
}
