package e2e

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bpb is part of what `eval bpb --json` prints.
type bpb struct {
	BPB           float64
	NatsPerToken  float64 `json:"nats_per_token"`
	Nats          float64
	Documents     int
	Tokens, Bytes int
	Window        int
	Each          []struct {
		Path  string
		BPB   float64
		Nats  float64
		Bytes int
	}
}

func evalBPB(t *testing.T, args ...string) (r bpb) {
	t.Helper()
	if err := json.Unmarshal([]byte(ok(t, "", append([]string{"eval", "bpb", "--json"}, args...)...).stdout), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEvalBPB(t *testing.T) {
	text := corpus(t, "eval.jsonl", 3, 700, 40)
	if err := os.MkdirAll(filepath.Join(dir, "code"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "code/a.rs"), []byte(source(500, 50)), 0o644); err != nil {
		t.Fatal(err)
	}
	r := evalBPB(t, "tiny.gguf", text, "code", "--each")
	if r.Documents != 4 || len(r.Each) != 4 || r.Window != 96 || r.Tokens != r.Bytes+4 || r.Each[3].Path != "code/a.rs" {
		t.Errorf("%+v", r)
	}
	// A model that knows nothing needs about log2(vocabulary) bits for a token.
	if r.BPB < 6 || r.BPB > 14 {
		t.Errorf("%v bits per byte from random weights", r.BPB)
	}
	sum, bytes := 0.0, 0
	for _, d := range r.Each {
		sum, bytes = sum+d.Nats, bytes+d.Bytes
	}
	if math.Abs(sum-r.Nats) > 1e-9*r.Nats || bytes != r.Bytes || math.Abs(r.Nats/math.Ln2/float64(r.Bytes)-r.BPB) > 1e-12 {
		t.Errorf("the parts give %v nats and %d bytes: %+v", sum, bytes, r)
	}
	// A property of the model and the text.
	for _, extra := range [][]string{{"--threads", "1"}, {"--kernel", "go"}} {
		if other := evalBPB(t, append([]string{"tiny.gguf", text, "code"}, extra...)...); other.Nats != r.Nats {
			t.Errorf("%v: %v nats, want %v", extra, other.Nats, r.Nats)
		}
	}
	if longer := evalBPB(t, "tiny.gguf", text, "code", "--overlap", "48"); longer.Nats == r.Nats || longer.Bytes != r.Bytes || longer.Tokens != r.Tokens {
		t.Errorf("windows that overlap: %+v", longer)
	}
	if out := ok(t, "", "eval", "bpb", "tiny.gguf", text).stdout; !strings.HasPrefix(out, "bits per byte") {
		t.Errorf("%q", out)
	}

	// Prepared data, with the model's own vocabulary.
	ok(t, "", "data", "prepare", text, "--tokenizer", "tiny.gguf", "-o", "evalset", "--val", corpus(t, "evalval.jsonl", 2, 900, 60))
	rows := evalBPB(t, "tiny.gguf", "--shards", "evalset")
	whole := evalBPB(t, "tiny.gguf", "evalval.jsonl")
	if rows.Bytes != whole.Bytes || rows.Tokens != whole.Tokens || rows.Documents != 2 {
		t.Errorf("rows of the split %+v, the documents %+v", rows, whole)
	}
	// The first document begins a row in both.
	first, one := evalBPB(t, "tiny.gguf", "--shards", "evalset", "--rows", "1"), evalBPB(t, "tiny.gguf", "--shards", "evalset", "--rows", "2")
	if first.Tokens != 96 || one.Tokens != 192 || one.Nats <= first.Nats {
		t.Errorf("one row %+v, two rows %+v", first, one)
	}
	if train := evalBPB(t, "tiny.gguf", "--shards", "evalset", "--split", "train"); train.Documents != 3 {
		t.Errorf("the other split: %+v", train)
	}

	for _, c := range []struct {
		args, err, hint string
		code            int
	}{
		{"eval bpb tiny.gguf", "no text", "--shards", 2},
		{"eval bpb tiny.gguf eval.jsonl --shards evalset", "files and --shards", "", 2},
		{"eval bpb tiny.gguf eval.jsonl --rows 3", "--rows 3", "--shards", 2},
		{"eval bpb tiny.gguf eval.jsonl --window 97", "context is 96", "", 2},
		{"eval bpb tiny.gguf eval.jsonl --overlap 96", "overlap of 96", "half a window", 2},
		{"eval bpb tiny.gguf absent.jsonl", "absent.jsonl", "check the path", 1},
		{"eval bpb tiny.gguf empty.gguf", "no text", "", 1},
		{"eval bpb tiny.gguf folder", "folder", "extension", 1},
		{"eval bpb tiny.gguf --shards folder", "manifest.json", "nanochat data prepare", 1},
		{"eval bpb nowhere.gguf eval.jsonl", "nowhere.gguf", "nanochat init", 3},
		{"eval bpb truncated.gguf eval.jsonl", "truncated.gguf", "damaged", 4},
		{"eval bits tiny.gguf", "unexpected argument bits", "nanochat eval --help", 2},
	} {
		r := run(t, "", strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.err) || !strings.Contains(r.stderr, c.hint) || r.stdout != "" {
			t.Errorf("%s: exit %d, want %d with %q and %q\n%s", c.args, r.code, c.code, c.err, c.hint, r.stderr)
		}
	}
}

// TestEvalNoticesAnotherVocabulary: shards of one vocabulary say nothing about a model of another.
func TestEvalNoticesAnotherVocabulary(t *testing.T) {
	ok(t, "", "data", "prepare", corpus(t, "other.jsonl", 2, 900, 70), "--tokenizer", vocabulary(t), "-o", "otherset", "--val", corpus(t, "otherval.jsonl", 1, 900, 80))
	if r := run(t, "", "eval", "bpb", "tiny.gguf", "--shards", "otherset"); r.code != 2 || !strings.Contains(r.stderr, "another vocabulary") {
		t.Errorf("exit %d, %s", r.code, r.stderr)
	}
}
