package c

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each allocation that the library makes for C fails once: the call says so, and the
// next ones work.
func TestNoMemory(t *testing.T) {
	preload := filepath.Join(dir, "failing.so")
	out, err := exec.Command("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", preload, "memory/failing.c", "-ldl").CombinedOutput()
	require.NoError(t, err, "%s", out)
	program := build(t, "shortage", "gcc", []string{"-std=c99"}, "memory/shortage.c", "suite/helpers.c", "-ldl")
	total := 0
	for at := 1; ; at++ {
		var made, short int
		text := run(t, []string{"LD_PRELOAD=" + preload, fmt.Sprint("NANOCHAT_FAIL_AT=", at)}, program, small)
		_, err := fmt.Sscan(strings.TrimSpace(text), &made, &short)
		require.NoError(t, err, text)
		if short == 0 {
			require.Less(t, made, at, "allocation %d failed and nobody noticed", at)
			break
		}
		total++
	}
	require.GreaterOrEqual(t, total, 12) // two texts for each of six errors
	t.Logf("RELIABILITY | each allocation of the library for C fails once: E_NOMEM, and the next calls work | %d of %d | `tests/c TestNoMemory` |", total, total)
}
