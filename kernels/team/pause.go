//go:build amd64 || arm64

package team

// pause tells the core n times, n ≥ 1, that this is a spin loop: it saves power and
// leaves a sibling hyper-thread its execution units.
//
//go:noescape
func pause(n uint32)
