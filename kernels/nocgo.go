//go:build !cgo || !(amd64 || arm64)

package kernels

// csets is empty: without a C compiler there is only the Go reference.
func csets() []*Set { return nil }

func limits() (l Limits, ok bool) { return l, false }
