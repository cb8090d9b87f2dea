//go:build cgo

package cuda

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// The compiler must see that Hopper's products run beside the rest of the kernel: where it does not, it waits
// for each of them (advice C7510 to C7519), or gives up the registers that were handed around (C7508).
func TestHopperProductsRunBesideTheKernel(t *testing.T) {
	c := compilerOrSkip(t)
	source, err := sources.ReadFile("src/hopper.cu")
	require.NoError(t, err)
	var log string
	listening := *c
	listening.api.Compile = func(p handle, n int32, options unsafe.Pointer) int32 {
		r := c.api.Compile(p, n, options)
		log = c.log(p)
		return r
	}
	_, err = listening.compile("hopper.cu", source, "sm_90a")
	require.NoError(t, err)
	require.NotContains(t, log, "C75")
}
