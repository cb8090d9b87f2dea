package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const training = `preset = "nano-5m"
name = "run"

[data]
path = "corpus"

[train]
steps = 1000
rows = 12

[optim.matrix]
lr = 0.02
`

func TestTrainingFile(t *testing.T) {
	c, err := Parse("train.toml", []byte(training), "optim.head.lr=0.5", "train.eval_tokens=1M", "schedule.decay=100")
	if err != nil {
		t.Fatal(err)
	}
	preset, err := Preset("nano-5m")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(preset.Model, c.Model); d != "" {
		t.Errorf("the preset's model differs:\n%s", d)
	}
	if c.Name != "run" || c.Train.Out != "runs/run" || c.Train.SeqLen != 512 || c.Train.MicroRows != 6 || c.Train.EvalTokens != 1<<20 ||
		c.Optim.Matrix.LR != 0.02 || c.Optim.Head.LR != 0.5 || c.Optim.Matrix.Rule != RuleMuon || c.Optim.Matrix.Clip || !c.Optim.Head.Clip {
		t.Errorf("%+v", c)
	}
	if got := c.Schedule.DecaySteps(c.Train.TotalSteps()); got != 100 {
		t.Errorf("decay of %d steps, want 100", got)
	}
	for key, want := range map[string]string{"model.dim": "preset nano-5m:5", "train.steps": "train.toml:8", "train.out": "derived from name", "train.z_loss": "default"} {
		if got := c.Source(key); got != want {
			t.Errorf("Source(%s) = %q, want %q", key, got, want)
		}
	}
}

func TestTrainLength(t *testing.T) {
	c, err := Parse("f", []byte(training), "train.tokens=1_000_000")
	if err != nil {
		t.Fatal(err)
	}
	if c.Train.Steps != 0 || c.Train.TotalSteps() != 163 { // 12 rows of 512
		t.Errorf("--set train.tokens: %d steps, %d in all, want 0 and 163", c.Train.Steps, c.Train.TotalSteps())
	}
	if _, err := Parse("f", []byte(strings.Replace(training, "steps = 1000", "steps = 1000\ntokens = 5", 1))); err == nil ||
		err.Error() != "config: f:9: train.tokens: train.steps is given as well (give one of them)" {
		t.Errorf("steps and tokens: %v", err)
	}
}

func TestTrainErrors(t *testing.T) {
	for _, c := range []struct{ name, line, set, want string }{
		{"unknown key", "[schedule]\nwarmpu = 3", "", "f:14: schedule.warmpu: unknown key (did you mean schedule.warmup?)"},
		{"range", "[schedule]\nfinal = 2", "", "f:14: schedule.final: 2 is outside 0 to 1"},
		{"class", "[optim.matirx]\nlr = 2", "", "f:14: optim.matirx.lr: unknown key (did you mean optim.matrix.lr?)"},
		{"rule of a class", "[optim.head]\nrule = \"muon\"", "", `f:14: optim.head.rule: "muon" is not one of adamw, lion`},
		{"integer", "", "train.steps=1.5", "--set: train.steps: 1.5 is a decimal number, not an integer"},
		{"large integer", "", "train.tokens=999999999999999999", "train.tokens: 999999999999999999 is outside 0 to "},
		{"negative seed", "", "train.seed=-1", "train.seed: -1 is outside 0 to"},
		{"device", "", "train.device=tpu", `train.device: "tpu" is not one of cpu, cuda, auto`},
		{"micro rows", "", "train.micro_rows=5", "train.micro_rows: 5 does not divide 12 rows"},
		{"row longer than the context", "", "train.seq_len=1k", "train.seq_len: 1024 is more than the 512 positions of the model"},
		{"decay", "", "schedule.decay=1.5", "schedule.decay: 1.5 is neither a share below 1 nor a whole number of steps"},
		{"schedule that does not fit", "", "train.steps=50", "schedule.warmup: 40 steps of warm-up and 25 of decay do not fit a run of 50"},
		{"weight decay", "", "optim.head.weight_decay=100 ", ""},
		{"weight decay times rate", "[optim.head]\nlr = 1\nweight_decay = 2", "", "f:15: optim.head.weight_decay: 2 times the learning rate 1 is above 1"},
		{"unknown preset", "", "", ""},
		{"preset on the command line", "", "preset=tiny", "--set: preset: stands only in a file"},
		{"section", "optim.matrix = 3", "", "optim.matrix.optim.matrix: unknown key"},
	} {
		doc := training + c.line + "\n"
		var sets []string
		if c.set != "" {
			sets = append(sets, c.set)
		}
		_, err := Parse("f", []byte(doc), sets...)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v\nwant %s", c.name, err, c.want)
		}
	}
	_, err := Parse("f", []byte("name = \"x\"\npreset = \"nano-6m\"\n"))
	if err == nil || !strings.HasPrefix(err.Error(), `config: f:2: preset: there is no preset "nano-6m" (did you mean nano-5m?)`) {
		t.Errorf("unknown preset: %v", err)
	}
	if _, err := Parse("f", []byte("preset = 3\n")); err == nil || !strings.Contains(err.Error(), "f:1: preset: ") {
		t.Errorf("preset that is no string: %v", err)
	}
}

// What TOML writes must read as the same configuration, whatever the values.
func TestTOML(t *testing.T) {
	c, err := Parse("train.toml", []byte(training), "name=a \"b\"\\ \x01", "optim.scalar.eps=1e-12", "train.seed=9007199254740992", "train.float=true")
	if err != nil {
		t.Fatal(err)
	}
	text := c.TOML()
	back, err := Parse("again", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if d := back.Differences(c); len(d) > 0 {
		t.Errorf("differs: %v", d)
	}
	if back.Name != "a \"b\"\\ \x01" || back.Train.Seed != 1<<53 {
		t.Errorf("name %q, seed %d", back.Name, back.Train.Seed)
	}
	other, err := Parse("x", []byte(training), "train.steps=2000", "name=n")
	if err != nil {
		t.Fatal(err)
	}
	first, err := Parse("x", []byte(training), "name=n")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Difference{{"train.steps", "1000", "2000"}}, other.Differences(first)); d != "" {
		t.Errorf("differences (-want +got):\n%s", d)
	}
}

// The rows of a step are divided between devices, where devices compute.
func TestDevices(t *testing.T) {
	parse := func(sets ...string) (*Config, error) { return Parse("f", []byte(training), sets...) }
	if c, err := parse("train.device=cuda", "train.devices=2", "train.rows=40"); err != nil || c.Train.MicroRows != 5 {
		t.Errorf("two devices: %v", err)
	}
	_, err := parse("train.device=auto", "train.devices=2", "train.micro_rows=4")
	if err == nil || !strings.HasPrefix(err.Error(), "config: --set: train.devices: 2 of them with 4 rows at a time do not divide 12 rows") {
		t.Error(err)
	}
	if _, err := parse("train.devices=2", "train.micro_rows=4"); err != nil {
		t.Errorf("on the processor: %v", err)
	}
}
