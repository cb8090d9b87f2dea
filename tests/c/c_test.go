package c

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	root, _ = filepath.Abs("../..")
	lib     = filepath.Join(root, "build", "lib")
	include = filepath.Join(root, "build", "include")
	dir     string // of this run
	command string // the nanochat command
	small   string // a model of one layer, 300 tokens and 128 positions
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	var err error
	if dir, err = os.MkdirTemp("", "nanochat-c-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	command, small = filepath.Join(dir, "nanochat"), filepath.Join(dir, "small.gguf")
	for _, args := range [][]string{
		{filepath.Join(root, "scripts", "build-lib"), "--static"},
		{"go", "build", "-o", command, "../../cmd/nanochat"},
		{command, "init", "tiny", small, "--seed", "7", "--set", "model.vocab=300", "--set", "model.context=128",
			"--set", "model.dim=64", "--set", "model.ffn=64", "--set", "model.layers=1"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", args, err, out)
			return 1
		}
	}
	return m.Run()
}

// need skips a test where a tool is missing that only the test needs.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

// run runs a program that must succeed and returns what it prints.
func run(t *testing.T, env []string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

var strict = []string{"-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g"}

// build compiles sources and links them to the library.
func build(t *testing.T, name, compiler string, flags []string, sources ...string) string {
	t.Helper()
	need(t, compiler)
	out := filepath.Join(dir, name)
	args := append([]string{compiler}, strict...)
	args = append(append(args, flags...), "-I"+include, "-o", out)
	args = append(args, sources...)
	run(t, nil, append(args, "-L"+lib, "-lnanochat", "-lpthread", "-lm", "-Wl,-rpath,"+lib)...)
	return out
}

// suite builds the program of the directory suite, once.
func suite(t *testing.T, name, compiler string, flags ...string) string {
	t.Helper()
	if out := filepath.Join(dir, name); fileExists(out) {
		return out
	}
	sources, err := filepath.Glob("suite/*.c")
	require.NoError(t, err)
	sources = slicesWithout(sources, "suite/loading.c")
	require.Len(t, sources, 13)
	return build(t, name, compiler, append([]string{"-std=c99"}, flags...), sources...)
}

// shelf is a directory with models and a training for the part jobs.
func shelf(t *testing.T) string {
	t.Helper()
	at := t.TempDir()
	b, err := os.ReadFile(small)
	require.NoError(t, err)
	write := func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(at, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(at, name), []byte(text), 0o600))
	}
	write("small/small.gguf", string(b))
	write("index.json", fmt.Sprintf(`{"updated":"2026-11","models":[
		{"name":"small","revision":"1","status":"bundled","file":"small.gguf","licence":"MIT","description":""},
		{"name":"later","revision":"1","status":"planned","file":"x.gguf","licence":"MIT","description":"","instead":"small"},
		{"name":"far","revision":"1","status":"published","file":"x.gguf","size":7,"sha256":"%064d","licence":"MIT","description":"","urls":["https://host.example/x.gguf"]}]}`, 7))
	for _, split := range []string{"train", "val"} {
		write(split+"/Cargo.toml", "[package]\nname = \""+split+"\"\n")
		for i := range 30 {
			write(fmt.Sprintf("%s/src/file%d.rs", split, i), strings.Repeat(fmt.Sprintf("/// Number %d of %s.\npub fn read_%d(index: usize) -> Option<usize> {\n    Some(index + %d)\n}\n\n", i, split, i, i), 8))
		}
	}
	write("train.toml", "name = \"c\"\n[model]\ndim = 64\nlayers = 1\nheads = 2\nffn = 64\nvocab = 300\ncontext = 32\ngroup = 64\n[data]\npath = \""+
		filepath.Join(at, "data")+"\"\n[train]\nsteps = 60\nrows = 4\nmicro_rows = 2\nseq_len = 32\neval_every = 0\ncheckpoint_every = 1000\n[schedule]\nwarmup = 10\ndecay = 20\n")
	run(t, nil, command, "data", "prepare", filepath.Join(at, "train"), "--val", filepath.Join(at, "val"), "--tokenizer", small, "--no-dedup", "-o", filepath.Join(at, "data"))
	return at
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func slicesWithout(list []string, what string) (out []string) {
	for _, s := range list {
		if s != what {
			out = append(out, s)
		}
	}
	return out
}

func TestHeaderCompilesInEveryDialect(t *testing.T) {
	for compiler, dialects := range map[string][]string{
		"gcc": {"c99", "c11", "c17"}, "clang": {"c99", "c11", "c17"},
		"g++": {"c++11", "c++17", "c++20"}, "clang++": {"c++11", "c++17", "c++20"},
	} {
		t.Run(compiler, func(t *testing.T) {
			need(t, compiler)
			language := "c"
			if strings.HasSuffix(compiler, "++") {
				language = "c++"
			}
			for _, d := range dialects {
				args := append([]string{compiler, "-std=" + d}, strict...)
				run(t, nil, append(args, "-Wconversion", "-fsyntax-only", "-x", language, filepath.Join(include, "nanochat.h"))...)
			}
		})
	}
}

// The part "generate" prints what the command prints.
func TestTextIsThatOfTheCommand(t *testing.T) {
	prompt := filepath.Join(dir, "prompt")
	require.NoError(t, os.WriteFile(prompt, []byte("fn größe\x00(\xff) {"), 0o600))
	programs := map[string]string{}
	for _, compiler := range []string{"gcc", "clang"} {
		t.Run(compiler, func(t *testing.T) { programs[compiler] = suite(t, "suite-"+compiler, compiler) })
	}
	for _, tt := range []struct {
		name, prompt         string
		tokens, temp, seed   string
		stop, stdin, program string
	}{
		{name: "greedy", prompt: "fn main() {", tokens: "40", temp: "0", seed: "0", program: "gcc"},
		{name: "seed", prompt: "struct", tokens: "60", temp: "1.3", seed: "18446744073709551615", program: "gcc"},
		{name: "whole context", prompt: "x", tokens: "0", temp: "0.8", seed: "3", program: "clang"},
		{name: "stop", prompt: "x", tokens: "100", temp: "1", seed: "5", stop: " ", program: "clang"},
		{name: "any bytes", prompt: "@" + prompt, tokens: "30", temp: "1", seed: "6", program: "gcc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			need(t, tt.program)
			args := []string{"generate", small, "--json", "-n", tt.tokens, "-t", tt.temp, "--seed", tt.seed}
			if tt.stop != "" {
				args = append(args, "--stop", tt.stop)
			}
			if !strings.HasPrefix(tt.prompt, "@") {
				args = append(args, tt.prompt)
			}
			cmd := exec.Command(command, args...)
			if path, is := strings.CutPrefix(tt.prompt, "@"); is {
				f, err := os.Open(path)
				require.NoError(t, err)
				defer f.Close()
				cmd.Stdin = f
			}
			out, err := cmd.Output()
			require.NoError(t, err)
			var want struct {
				Text         string  `json:"text"`
				Tokens       []int32 `json:"tokens"`
				FinishReason string  `json:"finish_reason"`
			}
			require.NoError(t, json.Unmarshal(out, &want))

			args = []string{programs[tt.program], "generate", small, tt.prompt, tt.tokens, tt.temp, tt.seed}
			if tt.stop != "" {
				args = append(args, tt.stop)
			}
			ids, rest, _ := strings.Cut(run(t, nil, args...), "\n")
			finish, text, _ := strings.Cut(rest, "\n")
			var tokens []int32
			for _, id := range strings.Fields(ids) {
				n, err := strconv.ParseInt(id, 10, 32)
				require.NoError(t, err)
				tokens = append(tokens, int32(n))
			}
			require.NotEmpty(t, tokens)
			require.Equal(t, want.Tokens, tokens)
			require.Equal(t, want.FinishReason, finish)
			require.Equal(t, want.Text, text)
		})
	}
}

func TestSuite(t *testing.T) {
	program := suite(t, "suite-gcc", "gcc")
	operations, forks, cycles := "20000", "100", "1000"
	if os.Getenv("NANOCHAT_LONG") != "" {
		operations, forks, cycles = "1000000", "1000", "10000"
	}
	for _, tt := range []struct {
		part []string
		what string // for the table of docs/RELIABILITY.md
	}{
		{part: []string{"contract"}},
		{part: []string{"sessions"}},
		{part: []string{"jobs", shelf(t)}},
		{part: []string{"misuse"}},
		{part: []string{"table", "5000", "1", "1"}},
		{[]string{"table", operations, "32", "3"}, "random calls of the C interface by 32 threads, each of which knows what its handles are (open, closed, NULL, of another kind, random bits): every status is the right one"},
		{part: []string{"concurrent"}},
		{part: []string{"signals"}},
		{[]string{"forks", forks}, "forks of a process that generates: every call in the child is E_FORKED at once, the parent goes on"},
		{part: []string{"chaos", "5000", "1", "1"}},
		{part: []string{"chaos", operations, "4", "2"}},
		{[]string{"chaos", operations, "32", "3"}, "random calls of the C interface by 32 threads that share their handles, many of them closed or of another kind: no crash, and the text is the same afterwards"},
		{[]string{"cycles", cycles, "2048"}, "open and close a model, streams, a session and jobs, again and again: resident memory grows by 2 MiB at most, files and threads are back"},
	} {
		t.Run(strings.Join(tt.part, " "), func(t *testing.T) {
			args := append([]string{program, tt.part[0], small}, tt.part[1:]...)
			figure := strings.TrimSpace(run(t, nil, args...))
			if figure == "" && len(tt.part) > 1 {
				figure = tt.part[1] + " of " + tt.part[1]
			}
			if tt.what != "" {
				t.Logf("RELIABILITY | %s | %s | `tests/c TestSuite` |", tt.what, figure)
			}
		})
	}
}

// needSanitizers skips a test where gcc has none.
func needSanitizers(t *testing.T) {
	t.Helper()
	probe := filepath.Join(dir, "probe.c")
	require.NoError(t, os.WriteFile(probe, []byte("int main(void) { return 0; }\n"), 0o600))
	if err := exec.Command("gcc", "-fsanitize=address,undefined", "-o", filepath.Join(dir, "probe"), probe).Run(); err != nil {
		t.Skip("gcc has no sanitizers here")
	}
}

// The C side under sanitizers: reads and writes out of bounds, undefined behaviour, and
// error objects that are not freed. The library itself is as it is shipped.
func TestSanitizers(t *testing.T) {
	needSanitizers(t)
	program := suite(t, "suite-asan", "gcc", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
	for _, part := range [][]string{
		{"contract"}, {"sessions"}, {"jobs", shelf(t)}, {"misuse"}, {"concurrent"}, {"signals"}, {"chaos", "10000", "8", "3"},
		{"table", "10000", "8", "4"}, {"forks", "10"},
	} {
		t.Run(part[0], func(t *testing.T) {
			options := "detect_leaks=1"
			if part[0] == "forks" {
				options = "detect_leaks=0" // a child leaves what it inherited alone
			}
			run(t, []string{"ASAN_OPTIONS=" + options}, append([]string{program, part[0], small}, part[1:]...)...)
		})
	}
}

func TestLoadedWithoutLinking(t *testing.T) {
	program := build(t, "loading", "gcc", []string{"-std=c99"}, "suite/loading.c", "-Wl,--as-needed", "-ldl")
	run(t, nil, program, filepath.Join(lib, "libnanochat.so"), small)
}

const examples = "../../bindings/c/"

func TestExamplesAsCpp(t *testing.T) {
	for _, compiler := range []string{"g++", "clang++"} {
		t.Run(compiler, func(t *testing.T) {
			program := build(t, "generate-"+compiler, compiler, []string{"-std=c++17", "-x", "c++"}, examples+"generate.c", "-x", "none")
			checkGenerate(t, program)
		})
	}
}

// checkGenerate compares the example with the command.
func checkGenerate(t *testing.T, program string) {
	t.Helper()
	want := run(t, nil, command, "generate", small, "fn main", "-n", "30", "-t", "1", "--seed", "9")
	require.Equal(t, want+"\n", run(t, nil, program, small, "fn main", "30", "1", "9"))
}

func TestPkgConfig(t *testing.T) {
	need(t, "pkg-config")
	env := []string{"PKG_CONFIG_PATH=" + filepath.Join(lib, "pkgconfig")}
	flags := strings.Fields(run(t, env, "pkg-config", "--cflags", "--libs", "nanochat"))
	program := filepath.Join(dir, "generate-pc")
	args := append([]string{"gcc", "-std=c99", "-o", program, examples + "generate.c"}, flags...)
	run(t, nil, append(args, "-Wl,-rpath,"+lib)...)
	checkGenerate(t, program)
}

// The projects of another program, which is linked to the shared or the static library.
func TestConsumerProjects(t *testing.T) {
	need(t, "cmake")
	out := filepath.Join(dir, "consumer")
	run(t, nil, "cmake", "-S", "consumer", "-B", out, "-DCMAKE_PREFIX_PATH="+filepath.Join(root, "build"))
	run(t, nil, "cmake", "--build", out)
	want := run(t, nil, command, "generate", small, "fn main() {")
	for _, program := range []string{"shared", "static", "plusplus"} {
		require.Equal(t, want, run(t, nil, filepath.Join(out, program), small, "fn main() {"), program)
		libraries := run(t, nil, "ldd", filepath.Join(out, program))
		require.Equal(t, program == "shared", strings.Contains(libraries, "libnanochat"), libraries)
	}
}

// A program that needs no shared library at all.
func TestPkgConfigStatic(t *testing.T) {
	need(t, "pkg-config")
	env := []string{"PKG_CONFIG_PATH=" + filepath.Join(lib, "pkgconfig")}
	flags := strings.Fields(run(t, env, "pkg-config", "--static", "--cflags", "--libs", "nanochat"))
	program := filepath.Join(dir, "generate-static")
	args := append([]string{"gcc", "-std=c99", "-static", "-o", program, examples + "generate.c"}, flags...)
	run(t, nil, args...)
	checkGenerate(t, program)
}

func TestCMakePackage(t *testing.T) {
	need(t, "cmake")
	out := filepath.Join(dir, "cmake")
	run(t, nil, "cmake", "-S", examples, "-B", out, "-DCMAKE_PREFIX_PATH="+filepath.Join(root, "build"))
	run(t, nil, "cmake", "--build", out)
	checkGenerate(t, filepath.Join(out, "generate"))
	lines := run(t, nil, filepath.Join(out, "stream"), small, "fn a", "let b")
	require.Regexp(t, `^fn a\|.*`, lines)
	require.Contains(t, lines, "\nlet b|")
	checkChat(t, filepath.Join(out, "chat"))
	checkTrain(t, filepath.Join(out, "train"))
	cmd := exec.Command(filepath.Join(out, "generate"), filepath.Join(dir, "none.gguf"), "x")
	message, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(message), "none.gguf")
	require.Contains(t, string(message), "hint: ")
}

// checkChat has a conversation of two turns, twice.
func checkChat(t *testing.T, program string) {
	t.Helper()
	var texts []string
	for range 2 {
		cmd := exec.Command(program, small, "phi3")
		cmd.Stdin = strings.NewReader("hi\nhm\n")
		out, err := cmd.Output()
		require.NoError(t, err)
		texts = append(texts, string(out))
	}
	require.GreaterOrEqual(t, strings.Count(texts[0], "\n"), 2)
	require.Equal(t, texts[0], texts[1])
	cmd := exec.Command(program, small, "telex")
	cmd.Stdin = strings.NewReader("hi\n")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "telex")
}

// checkTrain interrupts a training, and lets it go on to its end.
func checkTrain(t *testing.T, program string) {
	t.Helper()
	at := shelf(t)
	args := []string{program, filepath.Join(at, "train.toml"), "train.out='" + filepath.Join(at, "run") + "'"}
	cmd := exec.CommandContext(t.Context(), args[0], append(args[1:], "train.steps=100000")...)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	require.True(t, lines.Scan())
	require.Regexp(t, `^step \d+ of 100000  loss \d`, lines.Text())
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	last := ""
	for lines.Scan() {
		last = lines.Text()
	}
	require.NoError(t, cmd.Wait())
	var result struct {
		Steps      int
		Checkpoint string
	}
	require.NoError(t, json.Unmarshal([]byte(last), &result), last)
	require.NotEmpty(t, result.Checkpoint)
	steps := max(result.Steps+20, 60)
	done := run(t, nil, append(args, fmt.Sprint("train.steps=", steps))...)
	require.Contains(t, done, fmt.Sprintf("step %d of %d", steps, steps))
	require.Contains(t, done, `"resumed_from":`)
	wrong, err := exec.Command(args[0], append(args[1:], "train.stepz=1")...).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(wrong), "stepz")
}

// The program of the guide is compiled and run as it stands there.
func TestGuide(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "docs", "C_API.md"))
	require.NoError(t, err)
	_, code, found := strings.Cut(string(b), "```c\n")
	require.True(t, found)
	code, _, _ = strings.Cut(code, "```")
	file := filepath.Join(dir, "hello.c")
	require.NoError(t, os.WriteFile(file, []byte(code), 0o600))
	program := build(t, "hello", "gcc", []string{"-std=c99"}, file)
	require.Equal(t, run(t, nil, command, "generate", small, "fn main() {"), run(t, nil, program, small))
}
