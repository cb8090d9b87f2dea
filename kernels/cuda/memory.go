package cuda

import (
	"fmt"
	"slices"
)

// pool keeps freed blocks for the next allocation of about their size: cuMemFree waits for
// the device.
type pool struct {
	blocks []block // by address, all that the driver gave
	used   uint64
	peak   uint64
	held   uint64
}

type block struct {
	at    Ptr
	bytes uint64
	free  bool
}

// MemoryError is a device without room.
type MemoryError struct {
	Device      int
	Asked       uint64 // bytes
	Free, Total uint64
	// Used is what this program has of it.
	Used uint64
}

func (e *MemoryError) Error() string {
	const mib = 1 << 20
	return fmt.Sprintf("cuda: device %d has no room for %d MiB: %d MiB of %d MiB are free, %d MiB are ours", e.Device, (e.Asked+mib-1)/mib, e.Free/mib, e.Total/mib, e.Used/mib)
}

// Alloc returns memory of the device, aligned to 256 bytes, with any contents. The error of a
// device without room is a *MemoryError.
func (t *Thread) Alloc(bytes uint64) (Ptr, error) {
	p := &t.pool
	size := roundUp(bytes)
	best := -1
	for i, b := range p.blocks { // the smallest that is not wasteful
		if b.free && b.bytes >= size && b.bytes <= size+size/4 && (best < 0 || b.bytes < p.blocks[best].bytes) {
			best = i
		}
	}
	if best < 0 {
		at, err := t.fromDriver(size)
		if err != nil {
			return 0, err
		}
		best, _ = slices.BinarySearchFunc(p.blocks, at, compareBlock)
		p.blocks = slices.Insert(p.blocks, best, block{at: at, bytes: size})
		p.held += size
	}
	b := &p.blocks[best]
	b.free = false
	p.used += b.bytes
	p.peak = max(p.peak, p.used)
	return b.at, nil
}

func compareBlock(b block, at Ptr) int {
	switch {
	case b.at < at:
		return -1
	case b.at > at:
		return 1
	}
	return 0
}

// roundUp keeps the number of different sizes small: 256 bytes, above 1 MiB 64 KiB.
func roundUp(bytes uint64) uint64 {
	unit := uint64(256)
	if bytes > 1<<20 {
		unit = 64 << 10
	}
	return max((bytes+unit-1)/unit*unit, unit)
}

// fromDriver asks the driver, and once more after giving it what is unused.
func (t *Thread) fromDriver(size uint64) (at Ptr, err error) {
	c := t.api.MemAlloc(&at, size)
	if c == codeOutOfMemory {
		if err := t.trim(); err != nil {
			return 0, err
		}
		c = t.api.MemAlloc(&at, size)
	}
	if c == codeOutOfMemory {
		e := &MemoryError{Device: t.device.Ordinal, Asked: size, Used: t.pool.used}
		if err := t.check("cuMemGetInfo", t.api.MemInfo(&e.Free, &e.Total)); err != nil {
			return 0, err
		}
		return 0, e
	}
	return at, t.check("cuMemAlloc", c)
}

// trim gives unused blocks back.
func (t *Thread) trim() error {
	if err := t.Wait(); err != nil {
		return err
	}
	keep := t.pool.blocks[:0]
	for _, b := range t.pool.blocks {
		if !b.free {
			keep = append(keep, b)
			continue
		}
		if err := t.check("cuMemFree", t.api.MemFree(b.at)); err != nil {
			return err
		}
		t.pool.held -= b.bytes
	}
	t.pool.blocks = keep
	return nil
}

// Free takes memory back once the work queued so far is done with it. It must be what
// Alloc returned; 0 does nothing.
func (t *Thread) Free(at Ptr) error {
	if at == 0 {
		return nil
	}
	i, ok := slices.BinarySearchFunc(t.pool.blocks, at, compareBlock)
	if !ok || t.pool.blocks[i].free {
		return fmt.Errorf("cuda: free of %#x, which is not allocated", uint64(at))
	}
	t.pool.blocks[i].free = true
	t.pool.used -= t.pool.blocks[i].bytes
	return nil
}

// FreeMemory is the bytes of the device that nobody uses, and all there are.
func (t *Thread) FreeMemory() (free, total uint64, err error) {
	err = t.check("cuMemGetInfo", t.api.MemInfo(&free, &total))
	return free, total, err
}

// Memory is the bytes in use, the most there were, and what is held in all.
func (t *Thread) Memory() (used, peak, held uint64) {
	return t.pool.used, t.pool.peak, t.pool.held
}
