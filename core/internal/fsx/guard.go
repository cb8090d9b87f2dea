package fsx

import (
	"fmt"
	"runtime/debug"
)

// Guard runs read, which reads mapped memory on this goroutine, and returns its
// error. A page that cannot be read, because the file was cut short or the disk
// failed, is an error too.
func Guard(path string, read func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if fault, ok := r.(interface{ Addr() uintptr }); ok {
			err = fmt.Errorf("fsx: %s: reading mapped memory failed at address %#x; the file was cut short or its disk fails", path, fault.Addr())
			return
		}
		panic(r)
	}()
	return read()
}
