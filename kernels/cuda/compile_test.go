//go:build cgo

package cuda

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/dl"
)

// compilerOrSkip opens NVRTC: of the system, or of the project's Python environment.
func compilerOrSkip(t *testing.T) *Compiler {
	t.Helper()
	dirs := append(LibDirs(os.Getenv), filepath.Join("..", "..", ".venv", "lib", "python3*", "site-packages", "nvidia", "*", "lib"))
	c, err := OpenCompiler(dirs...)
	if err != nil {
		t.Skip("NVRTC is not here (requirements-dev.txt names its package):", err)
	}
	return c
}

func TestEverySourceCompilesForEveryArchitecture(t *testing.T) {
	c := compilerOrSkip(t)
	t.Log("NVRTC", c.Version())
	for _, arch := range []string{"sm_80", "sm_90a", "sm_100"} {
		for _, name := range Sources() {
			code, err := c.Compile(name, arch)
			require.NoError(t, err, "%s for %s", name, arch)
			require.Equal(t, "\x7fELF", string(code[:4]))
		}
	}
}

func TestErrorsOfTheCompiler(t *testing.T) {
	c := compilerOrSkip(t)
	_, err := c.Compile("nothing", "sm_90a")
	require.ErrorContains(t, err, "there are ")
	_, err = c.compile("wrong.cu", []byte("__global__ void k() { undeclared(); }"), "sm_90a")
	var e *Error
	require.ErrorAs(t, err, &e)
	require.ErrorContains(t, err, "wrong.cu(1)")
	require.ErrorContains(t, err, "undeclared")
	_, err = c.compile("ternary.cu", nil, "sm_13")
	require.ErrorContains(t, err, "nvrtc")
}

func TestCacheOfCode(t *testing.T) {
	dir := t.TempDir()
	none := &dl.Error{Library: "NVRTC"}
	c := &CodeCache{Dir: filepath.Join(dir, "deep", "cache"), Err: none}
	_, err := c.Cubin("ternary", "sm_90a")
	require.Equal(t, none, err)
	compiler := compilerOrSkip(t)
	c.Compiler = compiler
	code, err := c.Cubin("ternary", "sm_90a")
	require.NoError(t, err)
	c.Compiler = nil // from the file
	again, err := c.Cubin("ternary", "sm_90a")
	require.NoError(t, err)
	require.Equal(t, code, again)
	files, err := os.ReadDir(c.Dir)
	require.NoError(t, err)
	require.Len(t, files, 1)
	c.Dir = filepath.Join(c.Dir, files[0].Name()) // a file: nothing can be kept there
	c.Compiler = compiler
	again, err = c.Cubin("ternary", "sm_90a")
	require.NoError(t, err)
	require.Equal(t, code, again)
}
