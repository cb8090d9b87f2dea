package numa

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Memory policies of <linux/mempolicy.h>.
const (
	mpolPreferred  = 1
	mpolInterleave = 3
)

// mapMemory maps size bytes, with huge pages if the system agrees.
func mapMemory(size int, huge bool) (*Memory, error) {
	length := size
	if huge {
		length += HugePage // room to align; pages nobody touches cost nothing
	}
	b, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	m := &Memory{bytes: b[:size:size], mapping: b, page: os.Getpagesize(), Policy: "any"}
	if huge {
		skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (HugePage - 1))
		m.bytes = b[skip : skip+size : skip+size]
		if err := unix.Madvise(b[skip:], unix.MADV_HUGEPAGE); err != nil {
			m.note(fmt.Errorf("huge pages refused: %w", err))
		} else {
			m.Huge = true
		}
	}
	return m, nil
}

func unmap(b []byte) error { return unix.Munmap(b) }

// place sets the policy of the pages, or has the node's own CPU touch them first
// where the system forbids that, as containers do.
func (m *Memory) place(t Topology, lo, hi, node int) error {
	mode, nodes := mpolPreferred, []int{node}
	if node == Interleave {
		mode, nodes = mpolInterleave, t.ids()
	}
	b := m.bytes[lo:hi]
	err := mbind(b, mode, nodes)
	if err == nil {
		m.Policy = "mbind"
		return nil
	}
	m.note(fmt.Errorf("mbind refused: %w", err))
	if node != Interleave {
		if err := firstTouch(b, m.page, t.Nodes[t.index(node)]); err != nil {
			m.note(err)
			return nil
		}
		m.Policy = "first touch"
		return nil
	}
	page := m.PageSize()
	for i, k := 0, 0; i < len(b); i, k = i+page, k+1 {
		if err := firstTouch(b[i:min(i+page, len(b))], m.page, t.Nodes[k%len(t.Nodes)]); err != nil {
			m.note(err)
			return nil
		}
	}
	m.Policy = "first touch"
	return nil
}

// mbind is the system call; the package x/sys/unix has only its number. The length
// is rounded up to pages by the system.
func mbind(b []byte, mode int, nodes []int) error {
	var mask [maxCPU / 64]uint64
	for _, n := range nodes {
		if n < 0 || n >= maxCPU {
			return unix.EINVAL
		}
		mask[n/64] |= 1 << (n % 64)
	}
	_, _, e := unix.Syscall6(unix.SYS_MBIND, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		uintptr(mode), uintptr(unsafe.Pointer(&mask)), maxCPU+1, 0)
	if e != 0 {
		return e
	}
	return nil
}

// Where counts the pages of b by the ID of the node they are on. Pages that were
// never written count under Any.
func Where(b []byte) (map[int]int, error) {
	if len(b) == 0 {
		return nil, nil
	}
	page := os.Getpagesize()
	start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	first := start &^ uintptr(page-1)
	count := int((start + uintptr(len(b)) - first + uintptr(page) - 1) / uintptr(page))
	const batch = 4096
	addrs := make([]uintptr, min(count, batch))
	status := make([]int32, len(addrs))
	where := map[int]int{}
	for done := 0; done < count; done += batch {
		n := min(batch, count-done)
		for i := range n {
			addrs[i] = first + uintptr((done+i)*page)
		}
		// Without target nodes move_pages moves nothing and reports.
		_, _, e := unix.Syscall6(unix.SYS_MOVE_PAGES, 0, uintptr(n), uintptr(unsafe.Pointer(&addrs[0])),
			0, uintptr(unsafe.Pointer(&status[0])), 0)
		if e != 0 {
			return nil, fmt.Errorf("numa: move_pages: %w", e)
		}
		for _, s := range status[:n] {
			if s < 0 { // -ENOENT: no page there yet; -EFAULT: the shared zero page
				s = Any
			}
			where[int(s)]++
		}
	}
	return where, nil
}

// addressOf is where b begins.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
