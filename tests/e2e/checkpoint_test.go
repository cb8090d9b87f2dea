package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckpointInParts: a training goes on from a checkpoint that was split and joined as
// if it had never stopped; damage is told.
func TestCheckpointInParts(t *testing.T) {
	config := training(t, "partsrun", "12")
	ok(t, "", "train", config, "--out", "pa", "--set", "train.checkpoint_every=6", "--set", "train.keep_last=9")
	r := ok(t, "", "checkpoint", "split", "pa/checkpoints/step-00000006", "-o", "pparts", "--size", "64k", "--json")
	var p struct {
		Step  int
		Parts []struct {
			Name  string
			Bytes int64
		}
	}
	if err := json.Unmarshal([]byte(r.stdout), &p); err != nil || p.Step != 6 || len(p.Parts) < 4 {
		t.Fatalf("%v\n%s", err, r.stdout)
	}
	r = ok(t, "", "checkpoint", "join", "pparts", "-o", "pb")
	if !strings.Contains(r.stderr, "wrote pb/checkpoints/step-00000006, step 6, of ") {
		t.Error(r.stderr)
	}
	r = ok(t, "", "train", config, "--out", "pb", "--set", "train.checkpoint_every=6", "--set", "train.keep_last=9")
	if !strings.Contains(r.stderr, "resumed pb/checkpoints/step-00000006 after step 6 of 12") {
		t.Error(r.stderr)
	}
	for _, name := range []string{"weights.safetensors", "optimizer.safetensors"} {
		var both [2][]byte
		for i, run := range []string{"pa", "pb"} {
			b, err := os.ReadFile(filepath.Join(dir, run, "checkpoints/step-00000012", name))
			if err != nil {
				t.Fatal(err)
			}
			both[i] = b
		}
		if !bytes.Equal(both[0], both[1]) {
			t.Errorf("%s differs", name)
		}
	}
	// The whole run, with its metrics.
	ok(t, "", "checkpoint", "split", "pb", "-o", "pparts2", "--models")
	ok(t, "", "checkpoint", "join", "pparts2", "-o", "pc")
	for _, name := range []string{"metrics.jsonl", "config.toml", "model.gguf"} {
		a, err := os.ReadFile(filepath.Join(dir, "pb", name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "pc", name))
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: %v", name, err)
		}
	}

	if err := os.Remove(filepath.Join(dir, "pparts", "part-0002")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "pparts", "part-0003"), 10); err != nil {
		t.Fatal(err)
	}
	r = run(t, "", "checkpoint", "join", "pparts", "-o", "pd")
	if r.code != 4 || !strings.Contains(r.stderr, "1 missing: part-0002; 1 damaged: part-0003") || !strings.Contains(r.stderr, "hint: write them again") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{1, "there is none in", []string{"split", "folder", "-o", "pe"}},
		{2, "too small", []string{"split", "pa", "-o", "pe", "--size", "10"}},
		{4, "there are no parts of a checkpoint", []string{"join", "folder", "-o", "pe"}},
		{4, "is a directory of a run", []string{"split", "pa", "-o", "pa"}},
	} {
		r := run(t, "", append([]string{"checkpoint"}, c.args...)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: exit %d, %s", c.args, r.code, r.stderr)
		}
		if _, err := os.Stat(filepath.Join(dir, "pe")); err == nil {
			t.Errorf("%v wrote something", c.args)
		}
	}
}
