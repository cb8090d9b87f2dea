//go:build !linux

package numa

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"
)

// mapMemory takes ordinary Go memory, aligned to a page.
func mapMemory(size int, huge bool) (*Memory, error) {
	page := os.Getpagesize()
	b := make([]byte, size+page)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & uintptr(page-1))
	m := &Memory{bytes: b[skip : skip+size : skip+size], page: page, Policy: "heap"}
	if huge {
		m.note(fmt.Errorf("no huge pages on %s", runtime.GOOS))
	}
	return m, nil
}

func unmap([]byte) error { return nil }

// place does nothing: one node is assumed on this system.
func (m *Memory) place(Topology, int, int, int) error { return nil }

// Where counts the pages of b by the ID of the node they are on. This system does
// not say.
func Where([]byte) (map[int]int, error) {
	return nil, fmt.Errorf("numa: page placement is not readable on %s", runtime.GOOS)
}

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
