//go:build cgo

package cuda

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// compiled is a source's code. What was compiled is kept below build/cudatest of the checkout, and is compiled again
// only when the source, a header, the options or the compiler is another.
func compiled(c *Compiler, name, arch string) ([]byte, error) {
	headers, err := fs.Glob(sources, "src/*.cuh")
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	for _, f := range append(headers, "src/"+name+".cu") {
		text, err := sources.ReadFile(f)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(h, "%s %d %s", f, len(text), text)
	}
	fmt.Fprint(h, options, c.Version(), arch)
	if _, err := os.Stat(filepath.Join("..", "..", "go.mod")); err != nil {
		return c.Compile(name, arch) // the test is not run in the checkout
	}
	path := filepath.Join("..", "..", "build", "cudatest", "nvrtc", fmt.Sprintf("%s-%s-%x.cubin", name, arch, h.Sum(nil)[:12]))
	if code, err := os.ReadFile(path); err == nil {
		return code, nil
	}
	code, err := c.Compile(name, arch)
	if err != nil {
		return nil, fmt.Errorf("%s for %s: %w", name, arch, err)
	}
	if keep(path, code) == nil { // a checkout that cannot be written is compiled again
		older, _ := filepath.Glob(filepath.Join(filepath.Dir(path), name+"-"+arch+"-*")) // the pattern is right
		for _, f := range older {
			if f != path {
				_ = os.Remove(f)
			}
		}
	}
	return code, nil
}

func TestEverySourceCompilesForEveryArchitecture(t *testing.T) {
	c := compilerOrSkip(t)
	t.Log("NVRTC", c.Version())
	names, arches := Sources(), []string{"sm_90a", "sm_80", "sm_100"}
	require.NoError(t, together(len(names)*len(arches), func(i int) (func(), error) {
		code, err := compiled(c, names[i%len(names)], arches[i/len(names)])
		if err == nil && !bytes.HasPrefix(code, []byte("\x7fELF")) {
			err = errors.New("no ELF file")
		}
		return func() {}, err
	}))
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
	_, err := c.Cubin("sums", "sm_90a")
	require.Equal(t, none, err)
	compiler := compilerOrSkip(t)
	c.Compiler = compiler
	code, err := c.Cubin("sums", "sm_90a")
	require.NoError(t, err)
	c.Compiler = nil // from the file
	again, err := c.Cubin("sums", "sm_90a")
	require.NoError(t, err)
	require.Equal(t, code, again)
	files, err := os.ReadDir(c.Dir)
	require.NoError(t, err)
	require.Len(t, files, 1)
	c.Dir = filepath.Join(c.Dir, files[0].Name()) // a file: nothing can be kept there
	c.Compiler = compiler
	again, err = c.Cubin("sums", "sm_90a")
	require.NoError(t, err)
	require.Equal(t, code, again)
}

// Code that was compiled elsewhere is used without a compiler, and is not written to.
func TestCodeThatIsReady(t *testing.T) {
	c := compilerOrSkip(t)
	ready, cache := t.TempDir(), t.TempDir()
	for _, name := range Sources() { // all but one are there
		if name != "sums" {
			require.NoError(t, os.WriteFile(filepath.Join(ready, codeFile(name, "sm_80")), []byte("\x7fELF of "+name), 0o600))
		}
	}
	var files []string
	require.NoError(t, c.CompileTo(ready, []string{"sm_80"}, func(f string) { files = append(files, f) }))
	require.Len(t, files, len(Sources()))
	none := &dl.Error{Library: "NVRTC"}
	use := &CodeCache{Dir: cache, Ready: []string{filepath.Join(cache, "nothing"), ready}, Err: none}
	code, err := use.Cubin("ternary", "sm_80")
	require.NoError(t, err)
	require.Equal(t, "\x7fELF of ternary", string(code))
	code, err = use.Cubin("sums", "sm_80")
	require.NoError(t, err)
	require.Greater(t, len(code), 100)
	_, err = use.Cubin("sums", "sm_90a")
	require.Equal(t, none, err)
	kept, err := os.ReadDir(cache)
	require.NoError(t, err)
	require.Empty(t, kept)

	require.NoError(t, os.WriteFile(filepath.Join(cache, "file"), nil, 0o600))
	require.ErrorContains(t, c.CompileTo(filepath.Join(cache, "file"), []string{"sm_80"}, func(string) {}), "cuda: ")
	require.ErrorContains(t, c.CompileTo(ready, []string{"sm_13"}, func(string) {}), "sm_13")
}

func TestTogetherEndsAtAnErrorOrPanic(t *testing.T) {
	var got []int
	require.NoError(t, together(100, func(i int) (func(), error) { return func() { got = append(got, i) }, nil }))
	slices.Sort(got)
	for i, v := range got {
		require.Equal(t, i, v)
	}
	require.Len(t, got, 100)
	require.NoError(t, together(0, nil))
	fault := errors.New("a fault")
	require.ErrorIs(t, together(1000, func(i int) (func(), error) {
		if i > 5 {
			return nil, fault
		}
		return func() { require.Less(t, i, 1000) }, nil
	}), fault)
	require.ErrorContains(t, together(1, func(int) (func(), error) { panic("oh") }), "oh")
	require.ErrorContains(t, together(1, func(int) (func(), error) { return func() { panic("ah") }, nil }), "ah")
}

func TestSetupOfTheEnvironment(t *testing.T) {
	env := map[string]string{KernelsVariable: "/k1::/k2", "XDG_CACHE_HOME": "/cache", "HOME": "/home/me"}
	get := func(name string) string { return env[name] }
	s := FromEnvironment(get, "")
	require.Equal(t, []string{"/k1", "/k2"}, s.KernelDirs)
	require.Equal(t, "/cache/nanochat/cuda", s.CacheDir)
	env["XDG_CACHE_HOME"] = "relative"
	require.Equal(t, "/home/me/.cache/nanochat/cuda", FromEnvironment(get, "").CacheDir)
	env["HOME"] = ""
	require.Empty(t, FromEnvironment(get, "").CacheDir)
	require.Equal(t, []string{"/k1", "/k2", "/usr/share/nanochat/cuda"}, FromEnvironment(get, "/usr/bin/nanochat").KernelDirs)
}

func TestReadyCodeOfTheFirstOfAGeneration(t *testing.T) {
	dir := t.TempDir()
	for _, arch := range []string{"sm_80", "sm_90a", "sm_100"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, codeFile("sums", arch)), []byte("\x7fELF of "+arch), 0o600))
	}
	none := errors.New("no compiler")
	c := &CodeCache{Ready: []string{dir}, Err: none}
	for arch, want := range map[string]string{"sm_80": "sm_80", "sm_86": "sm_80", "sm_89": "sm_80", "sm_90a": "sm_90a", "sm_100a": "sm_100", "sm_103a": "sm_100"} {
		code, err := c.Cubin("sums", arch)
		require.NoError(t, err)
		require.Equal(t, "\x7fELF of "+want, string(code), arch)
	}
	for _, arch := range []string{"sm_90", "sm_120a", "sm_75"} {
		_, err := c.Cubin("sums", arch)
		require.Equal(t, none, err, arch)
	}
}
