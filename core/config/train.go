package config

// Data says what a training reads.
type Data struct {
	// Path is the directory that `nanochat data prepare` wrote.
	Path string
	// Tokenizer is the file of the tokenizer that made the data, a GGUF file or a
	// tokenizer.json; empty takes the one beside the data.
	Tokenizer string
	// FIMRate is the share of documents learned as fill-in-the-middle and FIMSPM the
	// share of those in the order suffix, prefix, middle.
	FIMRate, FIMSPM float64
	// Workers is the number of goroutines that make batches.
	Workers int
	// Verify checks the hashes of all shards at the start.
	Verify bool
	// Licence is a note on the licence of the data, for the model file.
	Licence string
}

// Train says how long a training runs, on which batches, and what it writes.
type Train struct {
	// Out is the directory of checkpoints, metrics and models; empty: runs/NAME.
	Out string
	// Steps or Tokens is the length of the run; the other is 0.
	Steps  int
	Tokens int64
	// A step learns Rows rows of SeqLen tokens, MicroRows of them at a time.
	Rows, SeqLen, MicroRows int
	// Seed chooses the first weights and the order of the data.
	Seed int64
	// Device is where it computes: DeviceCPU, DeviceCUDA or DeviceAuto. Devices is how many
	// GPUs of this machine share the rows of a step, where GPUs compute.
	Device  string
	Devices int
	// HalfState keeps the momentum of Muon and Lion in bfloat16 on a GPU.
	HalfState bool
	// Threads is the number of workers; 0: the cores this process may use.
	Threads int
	// LogEvery, EvalEvery and CheckpointEvery are intervals in steps; 0: never, but
	// the end of a run is always logged, evaluated and saved.
	LogEvery, EvalEvery, CheckpointEvery int
	// EvalTokens is the number of validation tokens of an evaluation; 0: all.
	EvalTokens int64
	// KeepLast and KeepBest are the checkpoints that stay.
	KeepLast, KeepBest int
	// ZLoss, Entropy and Smoothing are the weights of the squared log-partition, of the
	// entropy of the predictions (as a bonus) and of label smoothing.
	ZLoss, Entropy, Smoothing float64
	// Clip is the largest norm of the gradients that are clipped; 0: no clipping.
	Clip float64
	// Recompute saves memory by computing activations again in the backward pass.
	Recompute bool
	// Float leaves the projections in floating point: the twin of a ternary model.
	Float bool
	// F32 multiplies in float32 instead of bfloat16 in the backward pass and in Muon.
	F32 bool
	// InitFrom is a model file whose weights the training starts from.
	InitFrom string
}

// The values of Train.Device.
const (
	DeviceCPU  = "cpu"
	DeviceCUDA = "cuda" // NVIDIA GPUs, from the first on; it is an error if they cannot be used
	DeviceAuto = "auto" // the same if they can be used, else the processor
)

// Schedule is the factor on all learning rates over the run.
type Schedule struct {
	// Shape is ShapeWSD, ShapeLinear, ShapeCosine or ShapeConstant.
	Shape string
	// Warmup is the steps of a line from 0.
	Warmup int
	// Decay is how long ShapeWSD falls: a share of the run below 1, else steps.
	Decay float64
	// Final is the factor at the end.
	Final float64
}

// The shapes of a Schedule.
const (
	ShapeWSD      = "wsd"      // warm-up, stable, decay
	ShapeLinear   = "linear"   // falls in a line from the warm-up on
	ShapeCosine   = "cosine"   // falls in half a cosine from the warm-up on
	ShapeConstant = "constant" // never falls
)

// DecaySteps is the number of steps that s falls in a run of total steps.
func (s Schedule) DecaySteps(total int) int {
	if s.Decay < 1 {
		return int(s.Decay * float64(total))
	}
	return int(s.Decay)
}

// Rule is how the parameters of one class are updated. Momentum, MomentumStart,
// MomentumWarmup, NewtonSchulz and Scaling belong to muon, Beta1 and Beta2 to adamw
// and lion, Eps to adamw.
type Rule struct {
	Rule        string
	LR          float64
	WeightDecay float64
	// Cautious decays a weight only where its update also moves it towards zero.
	Cautious bool
	// Clip takes part in the clipping of gradients.
	Clip                    bool
	Momentum, MomentumStart float64
	MomentumWarmup          int
	NewtonSchulz            int
	Beta1, Beta2, Eps       float64
	Scaling                 string
}

// The kinds of a Rule and its scalings.
const (
	RuleMuon        = "muon"
	RuleAdamW       = "adamw"
	RuleLion        = "lion"
	ScalingSpectral = "spectral" // √max(1, rows/cols)
	ScalingAdam     = "adam"     // 0.2·√max(rows, cols)
)

// Optim has one rule for every class of parameters.
type Optim struct {
	Matrix, Embedding, Head, Scalar, MHC Rule
}

// Anomaly is the limits of the detectors of a training that goes wrong. A limit of
// 0 turns its detector off.
type Anomaly struct {
	// Window is the number of steps that running means and medians look back.
	Window int
	// LossSigma is how many standard deviations a loss may lie above the mean.
	LossSigma float64
	// GradRatio is how many times the median a gradient norm may be.
	GradRatio float64
	// EntropySigma is how many standard deviations the entropy of the predictions may
	// lie from the mean, on either side.
	EntropySigma float64
	// FlipRate is the largest share of trits that may change in a step, and FlipRatio
	// how many times the median it may be.
	FlipRate, FlipRatio float64
	// ZeroMin and ZeroMax bound the share of zero trits.
	ZeroMin, ZeroMax float64
	// Cosine is the largest mean cosine between residual streams.
	Cosine float64
	// Patience is the number of bad steps in a row (skipped, or of anomalous loss)
	// after which the training stops.
	Patience int
}

// Telemetry says what a training shows of itself besides metrics.jsonl.
type Telemetry struct {
	// TensorBoard writes event files to TensorBoardDir; empty: the directory tensorboard
	// of the run.
	TensorBoard    bool
	TensorBoardDir string
	// Histograms adds, at every evaluation, the distributions of trits and weights.
	Histograms bool
	// Sample is the beginning of a text that the model goes on with for SampleTokens
	// tokens at every evaluation. 0: none.
	Sample       string
	SampleTokens int
}

// defaultConfig holds the default of every key that has one: the recipe for about
// five million weights.
func defaultConfig() *Config {
	adam := Rule{
		Rule: RuleAdamW, Cautious: true, Clip: true, Momentum: 0.95, MomentumStart: 0.85, MomentumWarmup: 200, NewtonSchulz: 3,
		Beta1: 0.8, Beta2: 0.95, Eps: 1e-10, Scaling: ScalingSpectral,
	}
	with := func(lr float64) Rule { r := adam; r.LR = lr; return r }
	matrix := with(0.012)
	matrix.Rule, matrix.WeightDecay, matrix.Clip = RuleMuon, 0.01, false
	return &Config{
		Model: DefaultModel(),
		Data:  Data{FIMSPM: 0.5, Workers: 1, Verify: true},
		Train: Train{
			Device: DeviceCPU, Devices: 1, Rows: 32, LogEvery: 10, EvalEvery: 250, CheckpointEvery: 250, EvalTokens: 1 << 18,
			KeepLast: 2, KeepBest: 1, ZLoss: 1e-4, Clip: 1,
		},
		Schedule:  Schedule{Shape: ShapeWSD, Warmup: 40, Decay: 0.5, Final: 0.02},
		Optim:     Optim{Matrix: matrix, Embedding: with(0.03), Head: with(0.004), Scalar: with(0.01), MHC: with(0.01)},
		Anomaly:   Anomaly{Window: 128, LossSigma: 6, GradRatio: 10, EntropySigma: 8, FlipRate: 0.05, FlipRatio: 5, ZeroMin: 0.05, ZeroMax: 0.95, Cosine: 0.999, Patience: 20},
		Telemetry: Telemetry{TensorBoard: true, Histograms: true, Sample: "fn main() {", SampleTokens: 64},
		source:    map[string]string{},
	}
}

// deriveTrain fills the keys of training whose default is another key.
func (c *Config) deriveTrain() {
	t := &c.Train
	if c.source["train.seq_len"] == "" {
		t.SeqLen = c.Model.Context
		c.source["train.seq_len"] = "derived from model.context"
	}
	if c.source["train.micro_rows"] == "" {
		rows := t.Rows
		if t.Device != DeviceCPU && t.Rows%t.Devices == 0 {
			rows /= t.Devices
		}
		t.MicroRows = max(1, min(8, rows))
		for rows%t.MicroRows != 0 {
			t.MicroRows--
		}
		c.source["train.micro_rows"] = "derived from train.rows"
	}
	if t.Out == "" && c.source["train.out"] == "" {
		t.Out = "runs/" + c.Name
		if c.Name == "" {
			t.Out = "runs/model"
		}
		c.source["train.out"] = "derived from name"
	}
	// A length given by --set takes the place of one in the file.
	steps, tokens := c.source["train.steps"], c.source["train.tokens"]
	switch {
	case steps == fromSet && tokens != fromSet && tokens != "":
		t.Tokens, c.source["train.tokens"] = 0, "replaced by train.steps"
	case tokens == fromSet && steps != fromSet && steps != "":
		t.Steps, c.source["train.steps"] = 0, "replaced by train.tokens"
	}
}

// TotalSteps is the number of steps of the run; 0 if the configuration has no
// length.
func (t Train) TotalSteps() int {
	if t.Steps > 0 || t.Tokens == 0 {
		return t.Steps
	}
	per := int64(t.Rows) * int64(t.SeqLen)
	return int((t.Tokens + per - 1) / per)
}
