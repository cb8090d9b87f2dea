package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// source is a made-up Rust file of at least n bytes.
func source(n int, seed int64) string {
	r := rand.New(rand.NewSource(seed))
	nouns := strings.Fields("buffer cursor index token parser node value entry bucket header packet stream reader writer table column")
	verbs := strings.Fields("push insert remove parse decode encode flush visit merge split append replace advance commit rewind check")
	types := strings.Fields("u8 u32 usize i64 f32 String Vec<u8> Option<usize> bool")
	pick := func(words []string) string { return words[r.Intn(len(words))] }
	var b strings.Builder
	for b.Len() < n {
		a, v := pick(nouns), pick(verbs)
		fmt.Fprintf(&b, "/// Has the %s %s the %s when the %s is %d.\npub fn %s_%s(%s: %s, %s: &mut %s) -> %s {\n", a, v, pick(nouns), pick(nouns), r.Intn(100),
			v, a, pick(nouns), pick(types), a, pick(types), pick(types))
		for range 1 + r.Intn(5) {
			fmt.Fprintf(&b, "    let %s = %s.%s(%d);\n", pick(nouns), a, pick(verbs), r.Intn(1000))
		}
		fmt.Fprintf(&b, "    %s.%s()\n}\n\n", a, pick(verbs))
	}
	return b.String()
}

// corpus writes files of JSON lines and returns the names it was given.
func corpus(t *testing.T, name string, docs, size int, seed int64) string {
	t.Helper()
	var b bytes.Buffer
	for i := range docs {
		line, err := json.Marshal(map[string]string{"path": fmt.Sprintf("%s-%d/src/lib.rs", strings.TrimSuffix(name, ".jsonl"), i), "text": source(size, seed+int64(i)),
			"license": []string{"MIT", "Apache-2.0"}[i%2]})
		if err != nil {
			t.Fatal(err)
		}
		b.Write(append(line, '\n'))
	}
	if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// vocabulary makes vocab.json of 400 tokens, once.
func vocabulary(t *testing.T) string {
	t.Helper()
	const name = "vocab.json"
	if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
		ok(t, "", "tokenizer", "train", corpus(t, "vocab.jsonl", 8, 8000, 1), "--vocab", "400", "-o", name)
	}
	return name
}

func TestTokenizerCommands(t *testing.T) {
	v := decode(t, ok(t, "", "tokenizer", "train", corpus(t, "words.jsonl", 8, 8000, 1), "--vocab", "400", "-o", "words.json", "--json").stdout)
	if v["vocab"] != 400.0 || v["documents"] != 8.0 || v["path"] != "words.json" {
		t.Errorf("%v", v)
	}
	again := decode(t, ok(t, "", "tokenizer", "train", "words.jsonl", "--vocab", "400", "-o", "words1.json", "--json", "--threads", "1").stdout)
	if again["sha256"] != v["sha256"] {
		t.Error("one thread makes another vocabulary than several")
	}
	if r := run(t, "", "tokenizer", "train", "words.jsonl", "-o", "words.json"); r.code != 1 || !strings.Contains(r.stderr, "hint: --force") {
		t.Errorf("an existing file: exit %d, %s", r.code, r.stderr)
	}

	// Whatever comes in comes out, through a vocabulary of either kind of file.
	noise := make([]byte, 20_000)
	rand.New(rand.NewSource(5)).Read(noise)
	for _, vocab := range []string{"words.json", "tiny.gguf"} {
		for _, text := range []string{"", "fn main() {\n    println!(\"grüß\");\n}\n", "<|endoftext|><|fim_prefix|>", string(noise)} {
			ids := ok(t, text, "tokenizer", "encode", vocab).stdout
			if got := ok(t, ids, "tokenizer", "decode", vocab).stdout; got != text {
				t.Errorf("%s: %d bytes became %d others", vocab, len(text), len(got))
			}
		}
	}

	// As an argument, as JSON, with special tokens.
	if plain := ok(t, "", "tokenizer", "encode", "words.json", "pub fn").stdout; plain != ok(t, "pub fn", "tokenizer", "encode", "words.json", "-").stdout {
		t.Errorf("an argument and standard input differ: %q", plain)
	}
	var e struct {
		IDs    []int32
		Pieces []string
		Bytes  int
	}
	if err := json.Unmarshal([]byte(ok(t, "", "tokenizer", "encode", "words.json", "<|fim_prefix|>pub fn", "--special", "--bos", "--json").stdout), &e); err != nil {
		t.Fatal(err)
	}
	if len(e.IDs) < 3 || e.IDs[0] != 256 || e.Pieces[0] != "<|endoftext|>" || e.Pieces[1] != "<|fim_prefix|>" || strings.Join(e.Pieces[2:], "") != "pub fn" || e.Bytes != 20 {
		t.Errorf("%+v", e)
	}
	if got := ok(t, "[72, 105,\n 256]", "tokenizer", "decode", "words.json").stdout; got != "Hi<|endoftext|>" {
		t.Errorf("a JSON array decodes to %q", got)
	}
	if got := ok(t, "", "tokenizer", "decode", "words.json", "72", "105", "256", "--skip-special").stdout; got != "Hi" {
		t.Errorf("without special tokens: %q", got)
	}
	if got := ok(t, "", "tokenizer", "decode", "words.json", "10", "65", "--pieces").stdout; got != "10\t\"\\n\"\n65\t\"A\"\n" {
		t.Errorf("pieces: %q", got)
	}
}

func TestDataPrepare(t *testing.T) {
	vocab := vocabulary(t)
	train, val := corpus(t, "train.jsonl", 12, 3000, 100), corpus(t, "val.jsonl", 3, 3000, 200)
	problem := source(3000, 104) // what document 4 is made of
	if err := os.WriteFile(filepath.Join(dir, "problems.txt"), []byte(problem), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"data", "prepare", train, "--val", val, "--decontaminate", "problems.txt", "--tokenizer", vocab, "-o", "prepared/set"}
	type split struct{ Documents, Tokens, Bytes int }
	var m struct {
		Splits   map[string]split
		Dropped  map[string]struct{ Documents int }
		Licences map[string]struct{ Documents int }
		Groups   int
	}
	if err := json.Unmarshal([]byte(ok(t, "", append(args, "--json")...).stdout), &m); err != nil {
		t.Fatal(err)
	}
	if m.Splits["train"].Documents != 11 || m.Splits["val"].Documents != 3 || m.Dropped["evaluation"].Documents != 1 || m.Groups != 14 {
		t.Errorf("%+v", m)
	}
	if s := m.Splits["train"]; s.Tokens == 0 || s.Bytes < 2*s.Tokens {
		t.Errorf("%+v", s)
	}
	// The directory has its vocabulary with it.
	text := "pub fn parse_token(buffer: Vec<u8>)"
	if a, b := ok(t, text, "tokenizer", "encode", vocab).stdout, ok(t, text, "tokenizer", "encode", "prepared/set/tokenizer.json").stdout; a != b {
		t.Errorf("the vocabulary of the directory is another one: %q, %q", a, b)
	}

	manifest := func() []byte {
		b, err := os.ReadFile(filepath.Join(dir, "prepared/set/manifest.json"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	before := manifest()
	if r := run(t, "", args...); r.code != 1 || !strings.Contains(r.stderr, "hint: --force") {
		t.Errorf("prepared data again: exit %d, %s", r.code, r.stderr)
	}
	r := ok(t, "", append(args, "--force", "--threads", "1")...)
	if !bytes.Equal(before, manifest()) {
		t.Error("one thread makes another manifest than several")
	}
	if r.stdout != "" || !strings.Contains(r.stderr, "evaluation: 1 document,") {
		t.Errorf("stdout %q, stderr %q", r.stdout, r.stderr)
	}

	m.Splits = nil
	if err := json.Unmarshal([]byte(ok(t, "", "data", "prepare", train, "--tokenizer", vocab, "-o", "prepared/mit", "--licence", "MIT", "--min-bytes", "0", "--json").stdout), &m); err != nil {
		t.Fatal(err)
	}
	if m.Splits["train"].Documents != 6 || m.Dropped["licence"].Documents != 6 {
		t.Errorf("only MIT: %+v", m)
	}
}

func TestDataMistakes(t *testing.T) {
	vocabulary(t)
	corpus(t, "some.jsonl", 2, 1000, 1)
	for name, text := range map[string]string{"bad.jsonl": "{\"text\": 1\n", "short.jsonl": "{\"text\": \"fn\"}\n", "none.jsonl": "", "bad.json": "{}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args, err, hint string
		code            int
	}{
		{"data prepare absent.jsonl --tokenizer vocab.json -o d", "absent.jsonl", "check the path", 1},
		{"data prepare some.jsonl --tokenizer absent.json -o d", "absent.json", "nanochat tokenizer train", 1},
		{"data prepare some.jsonl --tokenizer some.jsonl -o d", "some.jsonl", "", 4},
		{"data prepare some.jsonl --tokenizer bad.json -o d", "bad.json", "", 4},
		{"data prepare some.jsonl -o d", "missing flags: --tokenizer", "nanochat data prepare --help", 2},
		{"data prepare bad.jsonl --tokenizer vocab.json -o d", "bad.jsonl: line 1", "correct or remove the line", 4},
		{"data prepare short.jsonl --tokenizer vocab.json -o d", "nothing is left to train on", "loosen the filters", 1},
		{"data prepare none.jsonl --tokenizer vocab.json -o d", "no documents", "check the path", 1},
		{"data prepare folder --tokenizer vocab.json -o d", "folder", "extensions", 1},
		{"data prepare some.jsonl --tokenizer vocab.json -o d --val-fraction 2", "validation fraction of 2", "", 2},
		{"data prepare some.jsonl --tokenizer vocab.json -o d --ngram 1", "overlaps of 1", "", 2},
		{"data prepare some.jsonl --tokenizer vocab.json -o d --threads=-1", "--threads -1", "", 2},
		{"data prepare some.jsonl --tokenizer vocab.json -o vocab.json", "vocab.json", "", 1},
		{"tokenizer train some.jsonl --vocab 100 -o v.json", "--vocab 100", "4096", 2},
		{"tokenizer train absent.rs -o v.json", "absent.rs", "check the path", 1},
		{"tokenizer train some.jsonl -o nowhere/v.json", "nowhere", "create the directory", 1},
		{"tokenizer train none.jsonl -o v.json", "no text", "", 1},
		{"tokenizer encode vocab.json", "", "", 0},
		{"tokenizer decode vocab.json 400", "no token 400", "0 to 399", 2},
		{"tokenizer decode vocab.json seven", `"seven" is not a token id`, "whole numbers", 2},
		{"tokenizer encode text.gguf x", "text.gguf", "", 4},
		{"tokenizer encode truncated.gguf x", "truncated.gguf", "damaged", 4},
		{"tokenizer encode vocab.json x --peaces", "--peaces", "did you mean --pieces", 2},
		{"tokenizer", "train", "nanochat tokenizer --help", 2},
	} {
		r := run(t, "", strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.err) || !strings.Contains(r.stderr, c.hint) {
			t.Errorf("%s: exit %d, want %d with %q and %q\n%s", c.args, r.code, c.code, c.err, c.hint, r.stderr)
		}
		if c.code != 0 && (r.stdout != "" || strings.Count(r.stderr, "\n") > 2) {
			t.Errorf("%s: more than an error and a hint\n%s%s", c.args, r.stdout, r.stderr)
		}
	}
}

// TestInterruptedDataCommands: what takes long stops at once and leaves no dataset.
func TestInterruptedDataCommands(t *testing.T) {
	vocab := vocabulary(t)
	name := corpus(t, "much.jsonl", 150, 100_000, 1000)
	for _, args := range [][]string{
		{"tokenizer", "train", name, "--vocab", "100000", "--min-count", "1", "-o", "cut.json"},
		{"data", "prepare", name, "--tokenizer", vocab, "-o", "cut"},
	} {
		best := time.Hour // of several: other programs may hold the processors
		for range 4 {
			code, took := interrupted(t, args...)
			if code != 130 {
				t.Fatalf("%v: exit code %d", args, code)
			}
			if best = min(best, took); best < 200*time.Millisecond {
				break
			}
		}
		if best > 200*time.Millisecond {
			t.Errorf("%v: stopped after %v", args, best)
		}
	}
	for _, left := range []string{"cut.json", "cut/manifest.json"} {
		if _, err := os.Stat(filepath.Join(dir, left)); err == nil {
			t.Errorf("%s is there", left)
		}
	}
	for _, pattern := range []string{".cut.json*", "cut/.*"} {
		if names, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(names) > 0 {
			t.Errorf("left behind: %v %v", names, err)
		}
	}
	// Reading standard input can be interrupted, too.
	if code, _ := interrupted(t, "tokenizer", "encode", vocab); code != 130 {
		t.Errorf("reading standard input: exit code %d", code)
	}
}

// interrupted starts a command whose standard input stays open, interrupts it when it
// is at work, and returns its exit code and how long it took to stop.
func interrupted(t *testing.T, args ...string) (code int, took time.Duration) {
	t.Helper()
	for wait := 150 * time.Millisecond; ; wait *= 2 {
		cmd := command(args...)
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		start := time.Now()
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		// Below 0 it was killed: on a busy machine it did not listen yet.
		if code, took = cmd.ProcessState.ExitCode(), time.Since(start); code >= 0 || wait > 5*time.Second {
			return code, took
		}
	}
}
