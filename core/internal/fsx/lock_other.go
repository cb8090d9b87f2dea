//go:build !(darwin || freebsd || linux || netbsd || openbsd)

package fsx

import (
	"errors"
	"fmt"
)

func tryLock(f File) (bool, error) {
	return false, fmt.Errorf("fsx: %s: lock: %w", f.Name(), errors.ErrUnsupported)
}
