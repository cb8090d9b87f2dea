//go:build linux || darwin || freebsd || netbsd || openbsd

package fsx

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// mapFile maps the whole file read-only.
func mapFile(f *os.File, size int) ([]byte, error) {
	b, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, &fs.PathError{Op: "mmap", Path: f.Name(), Err: fmt.Errorf("%d bytes: %w", size, err)}
	}
	return b, nil
}

func unmapFile(b []byte) error { return syscall.Munmap(b) }
