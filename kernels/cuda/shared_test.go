//go:build cgo

package cuda

import (
	"bytes"
	"debug/elf"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A kernel that asks for dynamicShared has little shared memory of its own: else the driver does
// not load it. The emulated driver does not know.
func TestKernelsWithMuchDynamicSharedMemoryHaveLittleOfTheirOwn(t *testing.T) {
	c := compilerOrSkip(t)
	for source, names := range map[string]string{
		"ternary": "quantize ternary_gemv", "decode": "mix_quantize activate_quantize decode_attention",
		"forward": "quantize_rows activate_rows mix_rows", "loss": "cross_entropy", "mhc": "mhc_few_logits",
		"hopper": "ternary_wgmma ternary_wgmma_64 ternary_wgmma_long", "flash": "flash_forward_64 flash_forward_128",
	} {
		code, err := compiled(c, source, "sm_90a")
		require.NoError(t, err)
		f, err := elf.NewFile(bytes.NewReader(code))
		require.NoError(t, err)
		for _, name := range strings.Fields(names) {
			require.NotNil(t, f.Section(".text."+name), name)
			if s := f.Section(".nv.shared." + name); s != nil {
				require.LessOrEqual(t, s.Size, uint64(ownShared), name)
			}
		}
	}
}
