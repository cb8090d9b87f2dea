//go:build !amd64 && !arm64

package team

// pause passes a little time in a spin loop.
func pause(n uint32) {
	for range n {
		_ = n
	}
}
