package abi

import (
	"bytes"
	"debug/elf"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "add what is new to the snapshot of this ABI version")

const (
	header = "../../include/nanochat.h"
	lib    = "../../build/lib"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if out, err := exec.Command("../../scripts/build-lib", "--static").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build-lib: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// A decl is what the header declares, found by its layout, which clang-format keeps.
type decl struct {
	version   string              // of the ABI
	release   string              // NANOCHAT_VERSION_STRING
	functions []string            // prototypes, each on one line
	structs   map[string][]string // fields in order
	macros    []string            // constants
}

var (
	comments   = regexp.MustCompile(`(?s)/\*.*?\*/`)
	blanks     = regexp.MustCompile(`\s+`)
	prototype  = regexp.MustCompile(`(?ms)^NANOCHAT_API ([^;#]*\([^;]*\));`)
	structure  = regexp.MustCompile(`(?s)typedef struct (\w+) \{(.*?)\} (\w+);`)
	field      = regexp.MustCompile(`(\w+)$`)
	macro      = regexp.MustCompile(`(?m)^#define (NANOCHAT_\w+) (.+)$`)
	nameOf     = regexp.MustCompile(`(\w+)\(`)
	notNumbers = map[string]bool{"NANOCHAT_API": true, "NANOCHAT_VERSION_STRING": true, "NANOCHAT_ABI_VERSION": true}
)

func readHeader(t *testing.T) decl {
	t.Helper()
	b, err := os.ReadFile(header)
	require.NoError(t, err)
	text := comments.ReplaceAllString(string(b), "")
	d := decl{structs: map[string][]string{}}
	for _, m := range prototype.FindAllStringSubmatch(text, -1) {
		d.functions = append(d.functions, strings.TrimSpace(blanks.ReplaceAllString(m[1], " ")))
	}
	for _, m := range structure.FindAllStringSubmatch(text, -1) {
		require.Equal(t, m[1], m[3])
		for f := range strings.SplitSeq(strings.TrimSuffix(strings.TrimSpace(m[2]), ";"), ";") {
			d.structs[m[1]] = append(d.structs[m[1]], field.FindString(strings.TrimSpace(f)))
		}
	}
	for _, m := range macro.FindAllStringSubmatch(text, -1) {
		switch {
		case m[1] == "NANOCHAT_ABI_VERSION":
			d.version = strings.TrimSuffix(strings.TrimSpace(m[2]), "u")
		case m[1] == "NANOCHAT_VERSION_STRING":
			d.release = strings.Trim(strings.TrimSpace(m[2]), `"`)
		}
		if !notNumbers[m[1]] {
			d.macros = append(d.macros, m[1])
		}
	}
	slices.Sort(d.functions)
	require.Greater(t, len(d.functions), 20)
	require.Len(t, d.structs, 5)
	require.Greater(t, len(d.macros), 25)
	return d
}

// layout asks a C compiler for sizes, offsets and values.
func layout(t *testing.T, compiler string, d decl) string {
	t.Helper()
	var src strings.Builder
	src.WriteString("#include <nanochat.h>\n#include <stdio.h>\nint main(void)\n{\n")
	src.WriteString("#define SAY(what, n) printf(\"%s %lld\\n\", what, (long long)(n))\n")
	names := make([]string, 0, len(d.structs))
	for name := range d.structs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&src, "SAY(\"size %s\", sizeof(%s));\n", name, name)
		for _, f := range d.structs[name] {
			fmt.Fprintf(&src, "printf(\"field %s.%s at %%zu bytes %%zu\\n\", offsetof(%s, %s), sizeof(((%s *)0)->%s));\n", name, f, name, f, name, f)
		}
	}
	for _, m := range d.macros {
		fmt.Fprintf(&src, "SAY(\"value %s\", %s);\n", m, m)
	}
	src.WriteString("return 0;\n}\n")
	dir := t.TempDir()
	file, program := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	require.NoError(t, os.WriteFile(file, []byte(src.String()), 0o600))
	out, err := exec.Command(compiler, "-std=c99", "-Wall", "-Werror", "-I"+filepath.Dir(header), "-o", program, file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	text, err := exec.Command(program).Output()
	require.NoError(t, err)
	return string(text)
}

func TestSnapshot(t *testing.T) {
	d := readHeader(t)
	got := "abi " + d.version + "\n"
	for _, f := range d.functions {
		got += "function " + f + "\n"
	}
	got += layout(t, "gcc", d)
	if _, err := exec.LookPath("clang"); err == nil {
		require.Equal(t, layout(t, "gcc", d), layout(t, "clang", d))
	}

	path := filepath.Join("testdata", "abi-"+d.version+".txt")
	want, err := os.ReadFile(path)
	if os.IsNotExist(err) && *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
		return
	}
	require.NoError(t, err, "a new ABI version needs a snapshot: go test ./tests/abi -update")
	if lost := missing(string(want), got); len(lost) > 0 {
		t.Fatalf("the interface of ABI version %s has lost or changed:\n%s\nthis breaks programs that are linked already: take it back, or raise NANOCHAT_ABI_VERSION", d.version, strings.Join(lost, "\n"))
	}
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
		return
	}
	if added := missing(got, string(want)); len(added) > 0 {
		t.Fatalf("the interface has grown by:\n%s\nif that is meant: go test ./tests/abi -update", strings.Join(added, "\n"))
	}
}

// missing lists the lines of a snapshot that another one does not have. Structures
// may grow.
func missing(from, in string) (lost []string) {
	have := map[string]bool{}
	sizes := map[string]int{}
	for line := range strings.Lines(in) {
		have[line] = true
		if name, n, is := size(line); is {
			sizes[name] = n
		}
	}
	for line := range strings.Lines(from) {
		if name, n, is := size(line); is && sizes[name] > n || have[line] {
			continue
		}
		lost = append(lost, strings.TrimSuffix(line, "\n"))
	}
	return lost
}

func size(line string) (name string, n int, is bool) {
	_, err := fmt.Sscanf(line, "size %s %d", &name, &n)
	return name, n, err == nil
}

func TestMissing(t *testing.T) {
	old := "function a\nsize s 8\nfield s.x at 4\n"
	require.Empty(t, missing(old, "function a\nfunction b\nsize s 16\nfield s.x at 4\nfield s.y at 8\n"))
	require.Equal(t, []string{"function a", "size s 8", "field s.x at 4"}, missing(old, "function a2\nsize s 4\nfield s.x at 0\n"))
}

// names are the functions that the header declares.
func names(d decl) (out []string) {
	for _, f := range d.functions {
		out = append(out, nameOf.FindStringSubmatch(f)[1])
	}
	slices.Sort(out)
	return out
}

func openLib(t *testing.T) *elf.File {
	t.Helper()
	f, err := elf.Open(filepath.Join(lib, "libnanochat.so"))
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestOnlyTheHeaderIsExported(t *testing.T) {
	symbols, err := openLib(t).DynamicSymbols()
	require.NoError(t, err)
	var got []string
	for _, s := range symbols {
		if s.Section == elf.SHN_UNDEF || s.Section == elf.SHN_ABS {
			continue // imported, or the name of the version
		}
		require.Equal(t, "NANOCHAT_1", s.Version, "version of %s", s.Name)
		got = append(got, s.Name)
	}
	slices.Sort(got)
	require.Equal(t, names(readHeader(t)), got)
}

func TestOnlyTheHeaderIsGlobalInTheStaticLibrary(t *testing.T) {
	dir := t.TempDir()
	archive, err := filepath.Abs(filepath.Join(lib, "libnanochat.a"))
	require.NoError(t, err)
	cmd := exec.Command("ar", "x", archive)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	f, err := elf.Open(filepath.Join(dir, "nanochat.o"))
	require.NoError(t, err)
	defer f.Close()
	symbols, err := f.Symbols()
	require.NoError(t, err)
	var got []string
	for _, s := range symbols {
		if elf.ST_BIND(s.Info) != elf.STB_LOCAL && s.Section != elf.SHN_UNDEF {
			got = append(got, s.Name)
		}
	}
	slices.Sort(got)
	require.Equal(t, names(readHeader(t)), got)
}

func TestSharedObject(t *testing.T) {
	d := readHeader(t)
	f := openLib(t)
	soname, err := f.DynString(elf.DT_SONAME)
	require.NoError(t, err)
	require.Equal(t, []string{"libnanochat.so." + d.version}, soname)
	for link, target := range map[string]string{
		"libnanochat.so": "libnanochat.so." + d.version, "libnanochat.so." + d.version: "libnanochat.so." + d.release,
	} {
		got, err := os.Readlink(filepath.Join(lib, link))
		require.NoError(t, err)
		require.Equal(t, target, got)
	}

	needed, err := f.DynString(elf.DT_NEEDED)
	require.NoError(t, err)
	for _, n := range needed {
		require.Regexp(t, `^(libc|libm|libpthread|libdl|libresolv|ld-linux-[\w-]+)\.so\.\d$`, n, "the library needs more than the C library")
	}
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		paths, err := f.DynString(tag)
		require.NoError(t, err)
		require.Empty(t, paths, "the library has %v", tag)
	}
	textrel, err := f.DynValue(elf.DT_TEXTREL)
	require.NoError(t, err)
	require.Empty(t, textrel)
	flags, err := f.DynValue(elf.DT_FLAGS_1)
	require.NoError(t, err)
	require.Len(t, flags, 1)
	require.NotZero(t, flags[0]&uint64(elf.DF_1_NOW), "not linked with -z now")
	require.NotZero(t, flags[0]&uint64(elf.DF_1_NODELETE), "not linked with -z nodelete")

	relro, stack := false, false
	for _, p := range f.Progs {
		relro = relro || p.Type == elf.PT_GNU_RELRO
		stack = stack || p.Type == elf.PT_GNU_STACK && p.Flags&elf.PF_X == 0
		require.False(t, p.Flags&elf.PF_X != 0 && p.Flags&elf.PF_W != 0, "memory that is writable and executable")
	}
	require.True(t, relro, "no RELRO")
	require.True(t, stack, "the stack is executable")
	require.Nil(t, f.Section(".symtab"), "not stripped")
}

// The paths of this machine, and of whoever builds a release, stay out of it.
func TestNoPathsOfTheBuildMachine(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(lib, "libnanochat.so"))
	require.NoError(t, err)
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	require.False(t, bytes.Contains(b, []byte(root+"/")), "the library names %s", root)
}

// One version everywhere.
func TestVersion(t *testing.T) {
	d := readHeader(t)
	b, err := os.ReadFile("../../cmd/nanochat/version.go")
	require.NoError(t, err)
	require.Contains(t, string(b), `const version = "`+d.release+`"`)
	for file, want := range map[string]string{
		"pkgconfig/nanochat.pc":                      "Version: " + d.release,
		"cmake/nanochat/nanochatConfigVersion.cmake": `set(PACKAGE_VERSION "` + d.release + `")`,
		"cmake/nanochat/nanochatConfig.cmake":        "libnanochat.so." + d.version,
	} {
		b, err := os.ReadFile(filepath.Join(lib, file))
		require.NoError(t, err)
		require.Contains(t, string(b), want, file)
	}
}

// What the header says of every function: its name stands in a comment before it, which
// names its errors.
func TestEveryFunctionIsDocumented(t *testing.T) {
	b, err := os.ReadFile(header)
	require.NoError(t, err)
	for _, f := range readHeader(t).functions {
		name := nameOf.FindStringSubmatch(f)[1]
		_, rest, found := strings.Cut(string(b), "/* "+name+" ")
		require.True(t, found, "no comment begins with %s", name)
		text, _, _ := strings.Cut(rest, "*/")
		if strings.HasPrefix(f, "nanochat_status ") && name != "nanochat_error_status" {
			require.Regexp(t, `Errors|fails\s+(\*\s+)?with`, text, "the comment of %s says nothing of errors", name)
		}
	}
}
