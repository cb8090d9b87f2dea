package readme

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// place is where the examples run.
type place struct {
	root, python string
	bin          string // where the program is
	env          []string
}

// prepare builds the program and the library.
func prepare(t *testing.T) place {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	p := place{root: root, python: os.Getenv("NANOCHAT_PYTHON")}
	if p.python == "" {
		t.Skip("NANOCHAT_PYTHON is not set: want a Python with the packages of requirements-dev.txt; `make test` sets it")
	}
	p.bin = t.TempDir()
	for _, args := range [][]string{
		{filepath.Join(root, "scripts", "build-lib")},
		{"go", "build", "-trimpath", "-o", filepath.Join(p.bin, "nanochat"), filepath.Join(root, "cmd", "nanochat")},
	} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	home := t.TempDir()
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NANOCHAT_") && !strings.HasPrefix(v, "HOME=") && !strings.HasPrefix(v, "PATH=") {
			p.env = append(p.env, v)
		}
	}
	p.env = append(p.env, "HOME="+home, "PATH="+p.bin+":"+filepath.Dir(p.python)+":"+os.Getenv("PATH"),
		"NANOCHAT_OFFLINE=1", "NANOCHAT_MODELS="+filepath.Join(root, "models"),
		"PYTHONPATH="+filepath.Join(root, "python"))
	return p
}

func TestREADME(t *testing.T) {
	markdown, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	blocks, err := Parse(string(markdown))
	require.NoError(t, err)

	ran := map[string]int{}
	for _, b := range blocks {
		if b.Run {
			ran[b.Language]++
		} else if b.Language == "python" || b.Language == "c" {
			require.NotEmpty(t, b.Why, "README.md:%d: neither run nor said why not", b.Line)
		}
	}
	for _, language := range []string{"python", "c", "sh"} {
		require.NotZero(t, ran[language], "README.md has no %s to run", language)
	}
	p := prepare(t)
	for section, blocks := range sections(blocks) {
		t.Run(section, func(t *testing.T) { p.section(t, p.checkout(t), blocks) })
	}
}

// sections gives the blocks to run of each section.
func sections(blocks []Block) map[string][]Block {
	out := map[string][]Block{}
	for _, b := range blocks {
		if b.Run {
			out[b.Section] = append(out[b.Section], b)
		}
	}
	return out
}

// checkout is a directory that has what `make build` leaves behind.
func (p place) checkout(t *testing.T) string {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "build"), 0o700))
	for name, target := range map[string]string{
		"models": "models", "build/lib": "build/lib", "build/include": "build/include", "build/bin": p.bin,
	} {
		if !filepath.IsAbs(target) {
			target = filepath.Join(p.root, target)
		}
		require.NoError(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	return dir
}

// section runs the blocks of one section.
func (p place) section(t *testing.T, dir string, blocks []Block) {
	if slices.ContainsFunc(blocks, func(b Block) bool { return b.Until != nil }) {
		var port string
		blocks, port = onFreePorts(t, blocks)
		if port != "" {
			p.env = append(slices.Clone(p.env), "NANOCHAT_ADDR=127.0.0.1:"+port)
		}
	}
	var cells []Block
	for _, b := range blocks {
		switch {
		case b.File != "":
			require.NoError(t, os.WriteFile(filepath.Join(dir, b.File), []byte(b.Text), 0o600))
		case b.Language == "python":
			cells = append(cells, b)
		case b.Language != "sh":
			t.Errorf("README.md:%d: %s cannot be run", b.Line, b.Language)
		case b.Until != nil:
			p.background(t, dir, b)
		default:
			cmd := p.command(t, dir, "bash", "-euo", "pipefail", "-c", b.Text)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			require.NoError(t, err, "README.md:%d: %s%s", b.Line, out, stderr.Bytes())
			b.check(t, string(out))
		}
	}
	if len(cells) > 0 {
		p.cells(t, dir, cells)
	}
}

// check compares what a block printed with what it should.
func (b Block) check(t *testing.T, out string) {
	t.Helper()
	if b.Prints != nil && !b.Prints.MatchString(out) {
		t.Errorf("README.md:%d: does not print %s:\n%s", b.Line, b.Prints, out)
	}
}

func (p place) command(t *testing.T, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = dir, p.env, 10*time.Second
	return cmd
}

// cells runs Python as a notebook.
func (p place) cells(t *testing.T, dir string, blocks []Block) {
	var texts []string
	for _, b := range blocks {
		texts = append(texts, b.Text)
	}
	in, err := json.Marshal(texts)
	require.NoError(t, err)
	cmd := p.command(t, dir, p.python, filepath.Join(p.root, "tests", "readme", "cells.py"))
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "README.md:%d and after: %s", blocks[0].Line, stderr.Bytes())
	var shown []string
	require.NoError(t, json.Unmarshal(out, &shown))
	require.Len(t, shown, len(blocks))
	for i, b := range blocks {
		b.check(t, shown[i])
	}
}

// locked is a buffer that is written and read at the same time.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// background starts a block and waits for its output; the test's end ends it.
func (p place) background(t *testing.T, dir string, b Block) {
	out := &locked{}
	cmd := p.command(t, dir, "bash", "-euo", "pipefail", "-c", b.Text)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // bash and what it runs get the signal
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Errorf("README.md:%d: does not end when interrupted:\n%s", b.Line, out)
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
	})
	for deadline := time.Now().Add(30 * time.Second); !b.Until.MatchString(out.String()); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("README.md:%d: ended (%v) before it printed %s:\n%s", b.Line, err, b.Until, out)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("README.md:%d: does not print %s:\n%s", b.Line, b.Until, out)
		}
	}
}

var address = regexp.MustCompile(`\b(127\.0\.0\.1|localhost):(\d+)`)

// onFreePorts replaces the ports in blocks. port is the one in place of 8080, which
// nanochat serve takes if none is named.
func onFreePorts(t *testing.T, blocks []Block) (replaced []Block, port string) {
	free := map[string]string{}
	out := slices.Clone(blocks)
	for i := range out {
		out[i].Text = address.ReplaceAllStringFunc(out[i].Text, func(s string) string {
			m := address.FindStringSubmatch(s)
			if free[m[2]] == "" {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				require.NoError(t, err)
				free[m[2]] = fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
				require.NoError(t, l.Close())
			}
			return m[1] + ":" + free[m[2]]
		})
	}
	return out, free["8080"]
}

func TestParse(t *testing.T) {
	blocks, err := Parse("# T\n```sh\nmake\n```\n## A\n<!-- run; prints: a.b; file: x.c -->\n```c\nint x;\n\nint y;\n```\n" +
		"### B\n<!-- not run: no disk is large enough -->\n```python\n1\n```\n<!-- run; until: ready -->\n```sh\nserve\n```\n")
	require.NoError(t, err)
	require.Len(t, blocks, 4)
	require.Equal(t, Block{Line: 3, Language: "sh", Text: "make\n"}, blocks[0])
	a := blocks[1]
	require.True(t, a.Run && a.Section == "A" && a.Line == 8 && a.File == "x.c" && a.Text == "int x;\n\nint y;\n")
	require.True(t, a.Prints.MatchString("a\nb"))
	require.Equal(t, "no disk is large enough", blocks[2].Why)
	require.False(t, blocks[2].Run)
	require.Equal(t, "B", blocks[3].Section)
	require.NotNil(t, blocks[3].Until)

	for _, wrong := range []string{
		"<!-- run -->\ntext\n", "<!-- run; print: x -->\n```sh\n```\n", "<!-- run; prints: ( -->\n```sh\n```\n", "<!-- run; prints: -->\n```sh\n```\n",
		"<!-- not run -->\n```sh\n```\n", "```sh\n",
	} {
		_, err := Parse(wrong)
		require.Error(t, err, "%q", wrong)
	}
}

// The runner notices what is wrong, and servers in the background.
func TestRunner(t *testing.T) {
	p := place{env: os.Environ()}
	sh := func(text, until string) Block {
		b := Block{Language: "sh", Text: text, Run: true}
		if until != "" {
			b.Until = regexp.MustCompile(until)
		}
		return b
	}
	blocks, port := onFreePorts(t, []Block{sh("serve 127.0.0.1:8080 localhost:8080 127.0.0.1:9", "x")})
	ports := address.FindAllStringSubmatch(blocks[0].Text, -1)
	require.Equal(t, ports[0][2], ports[1][2])
	require.NotEqual(t, ports[0][2], ports[2][2])
	require.NotEqual(t, "8080", port)
	require.Equal(t, port, ports[0][2])

	p.section(t, t.TempDir(), []Block{
		{Language: "c", Text: "int x;\n", Run: true, File: "x.c"},
		sh("cp x.c y.c; echo started > log; echo ready; sleep 100", "ready"),
		{Language: "sh", Text: "cat log y.c", Run: true, Prints: regexp.MustCompile(`^started\nint x;\n$`)},
	})
}
