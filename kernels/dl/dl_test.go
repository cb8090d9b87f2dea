//go:build cgo

package dl

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// build compiles a shared library from C.
func build(t *testing.T, name, source string) string {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		cc, err = exec.LookPath("gcc")
	}
	if err != nil {
		t.Skip("no C compiler: there is no library to load")
	}
	dir := t.TempDir()
	c, so := filepath.Join(dir, "x.c"), filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(c, []byte(source), 0o600))
	out, err := exec.Command(cc, "-shared", "-fPIC", "-o", so, c).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return so
}

const sum = `
double weighted(int a, double b, const int *c, long n) { double s = a * b; for (long i = 0; i < n; i++) s += c[i]; return s; }
int answer(void) { return 42; }
`

func TestBind(t *testing.T) {
	so := build(t, "libsum.so.1", sum)
	l, err := Open(Search{Name: "the sum", Files: []string{"libsum.so.2", "libsum.so.1"}, Dirs: []string{filepath.Join(filepath.Dir(filepath.Dir(so)), "00*")}})
	require.NoError(t, err)
	require.Equal(t, so, l.Path())
	var f struct {
		Weighted func(a int32, b float64, c *int32, n int) float64 `c:"weighted"`
		Answer   func() int32                                      `c:"answer,optional"`
		None     func()                                            `c:"none,optional"`
		Count    int
	}
	require.NoError(t, l.Bind(&f))
	c := []int32{1, 2, 3}
	require.Equal(t, 6+1.5, f.Weighted(3, 0.5, &c[0], len(c)))
	require.EqualValues(t, 42, f.Answer())
	require.Nil(t, f.None)
	require.True(t, l.Has("answer"))
	require.False(t, l.Has("none"))
}

func TestMissingSymbolsAreAllNamedAndNothingIsBound(t *testing.T) {
	so := build(t, "libsum.so", sum)
	l, err := Open(Search{Name: "the sum", Files: []string{so}, Hint: "install it again"})
	require.NoError(t, err)
	var f struct {
		Answer func() int32 `c:"answer"`
		One    func()       `c:"one"`
		Two    func()       `c:"two"`
	}
	err = l.Bind(&f)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, []string{"one", "two"}, e.Missing)
	require.Equal(t, "install it again", e.Hint)
	require.ErrorContains(t, err, so)
	require.Nil(t, f.Answer)
}

func TestLibraryThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "libbad.so")
	require.NoError(t, os.WriteFile(bad, []byte("no library"), 0o600))
	_, err := Open(Search{Name: "the library", Files: []string{"libbad.so", "lib-that-is-nowhere.so.7"}, Dirs: []string{dir, "[", filepath.Join(dir, "none*")}, Hint: "h"})
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Len(t, e.Tried, 3) // the damaged file by its path, then both names
	require.ErrorContains(t, err, bad)
	require.ErrorContains(t, err, "lib-that-is-nowhere.so.7")
	require.Equal(t, "h", e.Hint)
	require.NotContains(t, err.Error(), "\n")
}

func TestBindOfWhatIsNoStructureOfFunctions(t *testing.T) {
	l, err := Open(Search{Name: "the sum", Files: []string{build(t, "libsum.so", sum)}})
	require.NoError(t, err)
	require.Error(t, l.Bind(nil))
	require.Error(t, l.Bind(struct{}{}))
	require.Error(t, l.Bind(&struct {
		A int `c:"answer"`
	}{}))
	var hidden struct {
		answer func() int32 `c:"answer"`
	}
	require.Error(t, l.Bind(&hidden))
	require.Nil(t, hidden.answer)
}
