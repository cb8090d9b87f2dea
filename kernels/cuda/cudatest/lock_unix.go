//go:build linux || darwin || freebsd || netbsd || openbsd

package cudatest

import (
	"os"
	"syscall"
)

// lock waits for other processes. Where that is not possible it does nothing: work may then be
// done twice.
func lock(path string) (unlock func()) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return func() {}
	}
	for syscall.Flock(int(f.Fd()), syscall.LOCK_EX) == syscall.EINTR {
	}
	return func() { _ = f.Close() } // nothing was written
}
