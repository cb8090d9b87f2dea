package fsx

import "syscall"

func releaseFile(b []byte) error { return syscall.Madvise(b, syscall.MADV_DONTNEED) }
