//go:build darwin || freebsd || linux || netbsd || openbsd

package fsx

import (
	"errors"
	"fmt"
	"syscall"
)

func tryLock(f File) (bool, error) {
	d, ok := f.(interface{ Fd() uintptr })
	if !ok {
		return false, fmt.Errorf("fsx: %s: lock: %w", f.Name(), errors.ErrUnsupported)
	}
	for {
		switch err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err {
		case nil:
			return true, nil
		case syscall.EINTR:
		case syscall.EWOULDBLOCK:
			return false, nil
		case syscall.ENOSYS, syscall.ENOTSUP, syscall.ENOLCK:
			return false, fmt.Errorf("fsx: %s: lock: %w", f.Name(), errors.ErrUnsupported)
		default:
			return false, fmt.Errorf("fsx: %s: lock: %w", f.Name(), err)
		}
	}
}
