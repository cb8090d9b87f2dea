package c

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// long skips what takes minutes; scripts/reliability does not.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("NANOCHAT_LONG") == "" {
		t.Skip("NANOCHAT_LONG is not set")
	}
}

// The C of the library itself, shim and kernels, under sanitizers, called by a suite
// that is as well.
func TestLibraryUnderSanitizers(t *testing.T) {
	long(t)
	needSanitizers(t)
	out := filepath.Join(dir, "asan")
	require.NoError(t, os.MkdirAll(out, 0o755))
	flags := "-fsanitize=address,undefined"
	cmd := exec.Command("go", "build", "-trimpath", "-buildmode=c-shared", "-ldflags",
		"-extldflags '-Wl,-soname,libnanochat.so.1 -Wl,--version-script="+filepath.Join(root, "capi", "nanochat.map")+"'",
		"-o", filepath.Join(out, "libnanochat.so.1"), "../../capi/libnanochat")
	cmd.Env = append(os.Environ(), "CGO_CFLAGS=-g -O1 -fno-sanitize-recover=all "+flags, "CGO_LDFLAGS="+flags)
	text, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", text)
	program := suite(t, "suite-asan", "gcc", flags, "-fno-sanitize-recover=all")
	env := []string{"ASAN_OPTIONS=detect_leaks=0", "LD_LIBRARY_PATH=" + out}
	loaded := run(t, append(env, "LD_TRACE_LOADED_OBJECTS=1"), program)
	require.Contains(t, loaded, out+"/libnanochat.so.1")
	const n = "1000000"
	for _, part := range [][]string{{"contract"}, {"sessions"}, {"misuse"}, {"concurrent"}, {"signals"}, {"chaos", n, "32", "5"}, {"table", n, "32", "6"}} {
		t.Run(part[0], func(t *testing.T) { run(t, env, append([]string{program, part[0], small}, part[1:]...)...) })
	}
	if t.Failed() {
		return
	}
	t.Logf("RELIABILITY | random calls by 32 threads with shim, kernels and caller under ASan and UBSan: no report | 2 × %s | `tests/c TestLibraryUnderSanitizers` |", n)
}

// Valgrind looks at the C program and at what it gets from the library. Of the library it
// sees little: it cannot follow the stacks that the Go runtime makes.
func TestValgrind(t *testing.T) {
	long(t)
	need(t, "valgrind")
	program := suite(t, "suite-gcc", "gcc")
	const n = "20000"
	for _, part := range [][]string{{"contract"}, {"sessions"}, {"chaos", n, "8", "7"}, {"table", n, "4", "8"}} {
		t.Run(part[0], func(t *testing.T) {
			args := []string{"valgrind", "-q", "--error-exitcode=9", "--undef-value-errors=no", "--suppressions=valgrind.supp",
				"--leak-check=full", "--errors-for-leak-kinds=definite", program, part[0], small}
			out := run(t, nil, append(args, part[1:]...)...)
			require.Empty(t, strings.TrimSpace(out))
		})
	}
	if t.Failed() {
		return
	}
	t.Logf("RELIABILITY | random calls under valgrind, which sees the caller, its buffers and its leaks, and not the Go runtime: no report | 2 × %s | `tests/c TestValgrind` |", n)
}
