package gopurego

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

var (
	library *Library
	small   string // a model of one layer, 300 tokens and 128 positions
	command string
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "nanochat-purego-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	small, command = filepath.Join(dir, "small.gguf"), filepath.Join(dir, "nanochat")
	for _, args := range [][]string{
		{"../../scripts/build-lib"},
		{"go", "build", "-o", command, "../../cmd/nanochat"},
		{command, "init", "tiny", small, "--seed", "7", "--set", "model.vocab=300", "--set", "model.context=128",
			"--set", "model.dim=64", "--set", "model.ffn=64", "--set", "model.layers=1"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // what is tested may be built without
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", args, err, out)
			return 1
		}
	}
	if library, err = Open("../../build/lib/libnanochat.so"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func open(t testing.TB) *Model {
	t.Helper()
	m, err := library.OpenModel(small, ModelOptions{Threads: 1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

func readAll(t testing.TB, s *Stream) (text string, ids []int32) {
	t.Helper()
	for p, err := range s.All(t.Context()) {
		require.NoError(t, err)
		text += p.Text
		if p.ID >= 0 {
			ids = append(ids, p.ID)
		}
	}
	return text, ids
}

func TestTextIsThatOfTheCommand(t *testing.T) {
	m := open(t)
	out, err := exec.Command(command, "generate", small, "fn größe", "--json", "-n", "50", "-t", "1.2", "--seed", "8").Output()
	require.NoError(t, err)
	var want struct {
		Text   string  `json:"text"`
		Tokens []int32 `json:"tokens"`
		Reason string  `json:"finish_reason"`
	}
	require.NoError(t, json.Unmarshal(out, &want))
	o := DefaultGenerateOptions()
	o.MaxTokens, o.Temperature, o.Seed, o.Logprobs = 50, 1.2, 8, true
	s, err := m.Generate("fn größe", o)
	require.NoError(t, err)
	text, ids := readAll(t, s)
	require.Equal(t, want.Text, text)
	require.Equal(t, want.Tokens, ids)
	st, err := s.Stats()
	require.NoError(t, err)
	require.Equal(t, map[string]Finish{"stop": FinishedStop, "length": FinishedLength}[want.Reason], st.Finish)
	require.GreaterOrEqual(t, st.Generated, uint64(len(ids)))
	require.Positive(t, st.PrefillTime)
	require.NoError(t, s.Close())
	require.Equal(t, Closed, StatusOf(s.Close()))

	o.Stops = []string{strings.Fields(text)[2], "never"}
	o.LogitBias = map[int32]float32{ids[0]: 0}
	s, err = m.Generate("fn größe", o)
	require.NoError(t, err)
	got, _ := readAll(t, s)
	before, _, _ := strings.Cut(text, o.Stops[0])
	require.Equal(t, before, got)
	require.NoError(t, s.Close())
}

func TestTokensAndInfo(t *testing.T) {
	m := open(t)
	long := strings.Repeat("größe ", 1000) // longer than the first buffer
	ids, err := m.Tokenize(long)
	require.NoError(t, err)
	text, err := m.Detokenize(ids)
	require.NoError(t, err)
	require.Equal(t, long, text)
	b, err := m.Info()
	require.NoError(t, err)
	require.True(t, json.Valid(b), "%s", b)
	b, err = library.SystemInfo()
	require.NoError(t, err)
	require.True(t, json.Valid(b), "%s", b)
	require.Contains(t, string(b), library.Version())
}

func TestErrors(t *testing.T) {
	_, err := Open("/none.so")
	require.Error(t, err)
	_, err = library.OpenModel(filepath.Join(t.TempDir(), "none"), ModelOptions{})
	require.Equal(t, NotFound, StatusOf(err))
	require.ErrorContains(t, err, "none")
	_, err = library.OpenModel(small, ModelOptions{Kernel: "abacus"})
	require.Equal(t, Invalid, StatusOf(err))
	require.ErrorContains(t, err, "abacus")
	m := open(t)
	_, err = m.Generate(strings.Repeat("a", 500), DefaultGenerateOptions())
	require.Equal(t, ContextFull, StatusOf(err))
	o := DefaultGenerateOptions()
	o.TopP = 7
	_, err = m.Generate("a", o)
	require.Equal(t, Invalid, StatusOf(err))
}

func TestContextAndCancel(t *testing.T) {
	m := open(t)
	o := DefaultGenerateOptions()
	o.IgnoreEnd = true
	s, err := m.Generate("a", o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Next(ctx)
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.Next(t.Context())
	require.NoError(t, err) // it went on
	require.NoError(t, s.Cancel())
	_, err = s.Next(t.Context())
	require.Equal(t, Cancelled, StatusOf(err))
	require.NoError(t, s.Close())
}

func TestTop(t *testing.T) {
	o := DefaultGenerateOptions()
	o.TopLogprobs, o.IgnoreEnd = 3, true
	s, err := open(t).Generate("a", o)
	require.NoError(t, err)
	p, err := s.Next(t.Context())
	require.NoError(t, err)
	top, err := s.Top()
	require.NoError(t, err)
	require.Len(t, top, 3)
	require.Equal(t, Candidate{p.ID, p.Logprob}, top[0])
	require.Less(t, top[2].Logprob, top[0].Logprob)
	require.NoError(t, s.Close())
}

// Two Go runtimes in one process: both collect garbage and start goroutines while
// text is generated on many of them.
func TestTwoRuntimes(t *testing.T) {
	m := open(t)
	begin := time.Now()
	var wg sync.WaitGroup
	texts := make([]string, 16)
	for i := range texts {
		wg.Go(func() {
			o := DefaultGenerateOptions()
			o.MaxTokens, o.Temperature, o.Seed = 60, 1, uint64(i%2)
			s, err := m.Generate("fn", o)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			for p, err := range s.All(t.Context()) {
				if err != nil {
					t.Error(err)
					return
				}
				texts[i] += p.Text
				if i%4 == 0 {
					runtime.GC()
				}
			}
		})
	}
	wg.Wait()
	for i, text := range texts {
		require.Equal(t, texts[i%2], text)
	}
	require.Less(t, time.Since(begin), 30*time.Second)
	require.Panics(t, func() { // a fault of the program is still the program's
		var p *Piece
		p.ID = 1
	})
}

// The structures are those of the header, by the snapshot of tests/abi.
func TestLayout(t *testing.T) {
	b, err := os.ReadFile("../../tests/abi/testdata/abi-1.txt")
	require.NoError(t, err)
	for name, size := range map[string]uintptr{
		"model_options": unsafe.Sizeof(modelOptions{}), "generate_options": unsafe.Sizeof(generateOptions{}),
		"piece": unsafe.Sizeof(piece{}), "stats": unsafe.Sizeof(stats{}),
	} {
		require.Regexp(t, regexp.MustCompile(fmt.Sprintf(`(?m)^size nanochat_%s %d$`, name, size)), string(b))
	}
	for name, offset := range map[string]uintptr{
		"model_options.kernel": unsafe.Offsetof(modelOptions{}.kernel), "generate_options.seed": unsafe.Offsetof(generateOptions{}.seed),
		"generate_options.stops": unsafe.Offsetof(generateOptions{}.stops), "generate_options.bias_count": unsafe.Offsetof(generateOptions{}.biasCount),
		"generate_options.temperature": unsafe.Offsetof(generateOptions{}.temperature), "piece.length": unsafe.Offsetof(piece{}.length),
		"piece.logprob": unsafe.Offsetof(piece{}.logprob), "stats.decode_ns": unsafe.Offsetof(stats{}.decode),
	} {
		require.Contains(t, string(b), fmt.Sprintf("field nanochat_%s at %d ", name, offset))
	}
}
