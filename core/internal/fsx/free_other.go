//go:build !linux

package fsx

// freeSpace is not known where the standard library does not tell.
func freeSpace(string) (int64, bool) { return 0, false }
