package config

// Limits of the keys of training.
const (
	maxSteps  = 1 << 30
	maxTokens = 1 << 50
	maxRows   = 1 << 16
)

// trainFields are the keys of [data], [train], [schedule], [optim.CLASS],
// [anomaly] and [telemetry].
func trainFields() []field {
	out := []field{
		{key: "data.path", doc: "directory of prepared data", at: func(c *Config) any { return &c.Data.Path }},
		{key: "data.tokenizer", doc: "file of the tokenizer, .gguf or tokenizer.json (default: the one in data.path)", at: func(c *Config) any { return &c.Data.Tokenizer }},
		{"data.fim_rate", "share of documents learned as fill-in-the-middle", func(c *Config) any { return &c.Data.FIMRate }, 0, 1, nil},
		{"data.fim_spm", "share of those with the suffix first", func(c *Config) any { return &c.Data.FIMSPM }, 0, 1, nil},
		{"data.workers", "goroutines that make batches", func(c *Config) any { return &c.Data.Workers }, 1, 64, nil},
		{key: "data.verify", doc: "check the hashes of all shards at the start", at: func(c *Config) any { return &c.Data.Verify }},
		{key: "data.licence", doc: "note on the licence of the data, for the model file", at: func(c *Config) any { return &c.Data.Licence }},

		{key: "train.out", doc: "directory of checkpoints, metrics and models (default: runs/NAME)", at: func(c *Config) any { return &c.Train.Out }},
		{"train.steps", "length of the run in steps; or give train.tokens", func(c *Config) any { return &c.Train.Steps }, 0, maxSteps, nil},
		{"train.tokens", "length of the run in tokens; or give train.steps", func(c *Config) any { return &c.Train.Tokens }, 0, maxTokens, nil},
		{"train.rows", "rows of a step", func(c *Config) any { return &c.Train.Rows }, 1, maxRows, nil},
		{"train.seq_len", "tokens of a row (default: model.context)", func(c *Config) any { return &c.Train.SeqLen }, 2, maxLength, nil},
		{"train.micro_rows", "rows learned at a time; divides rows (default: at most 8)", func(c *Config) any { return &c.Train.MicroRows }, 1, maxRows, nil},
		{"train.seed", "seed of the first weights and of the order of the data", func(c *Config) any { return &c.Train.Seed }, 0, 1 << 53, nil},
		{"train.device", "where to compute: cpu, cuda (NVIDIA GPUs), auto (GPUs if they can be used)", func(c *Config) any { return &c.Train.Device }, 0, 0, []string{DeviceCPU, DeviceCUDA, DeviceAuto}},
		{"train.devices", "GPUs that share the rows of a step; times micro_rows divides rows", func(c *Config) any { return &c.Train.Devices }, 1, 64, nil},
		{key: "train.half_state", doc: "keep the momentum of muon and lion in bfloat16 on a GPU", at: func(c *Config) any { return &c.Train.HalfState }},
		{"train.threads", "workers; 0: the cores this process may use", func(c *Config) any { return &c.Train.Threads }, 0, 256, nil},
		{"train.log_every", "steps between two lines of the log; 0: none", func(c *Config) any { return &c.Train.LogEvery }, 0, maxSteps, nil},
		{"train.eval_every", "steps between two evaluations; 0: at the end only", func(c *Config) any { return &c.Train.EvalEvery }, 0, maxSteps, nil},
		{"train.eval_tokens", "validation tokens of an evaluation; 0: all", func(c *Config) any { return &c.Train.EvalTokens }, 0, maxTokens, nil},
		{"train.checkpoint_every", "steps between two checkpoints; 0: at the end only", func(c *Config) any { return &c.Train.CheckpointEvery }, 0, maxSteps, nil},
		{"train.keep_last", "newest checkpoints that stay", func(c *Config) any { return &c.Train.KeepLast }, 1, 1000, nil},
		{"train.keep_best", "best checkpoints that stay as well", func(c *Config) any { return &c.Train.KeepBest }, 0, 1000, nil},
		{"train.z_loss", "weight of the squared log-partition in the loss", func(c *Config) any { return &c.Train.ZLoss }, 0, 1, nil},
		{"train.entropy", "weight of the entropy of the predictions, as a bonus", func(c *Config) any { return &c.Train.Entropy }, 0, 1, nil},
		{"train.smoothing", "label smoothing", func(c *Config) any { return &c.Train.Smoothing }, 0, 0.5, nil},
		{"train.clip", "largest norm of the gradients that are clipped; 0: off", func(c *Config) any { return &c.Train.Clip }, 0, 1e6, nil},
		{key: "train.recompute", doc: "compute activations again in the backward pass, to save memory", at: func(c *Config) any { return &c.Train.Recompute }},
		{key: "train.float", doc: "leave the projections in floating point: the twin of a ternary model", at: func(c *Config) any { return &c.Train.Float }},
		{key: "train.f32", doc: "multiply in float32 in the backward pass and in Muon, not in bfloat16", at: func(c *Config) any { return &c.Train.F32 }},
		{key: "train.init_from", doc: "model file whose weights the training starts from", at: func(c *Config) any { return &c.Train.InitFrom }},

		{"schedule.shape", "form of the learning rate over the run", func(c *Config) any { return &c.Schedule.Shape }, 0, 0, []string{ShapeWSD, ShapeLinear, ShapeCosine, ShapeConstant}},
		{"schedule.warmup", "steps of the warm-up", func(c *Config) any { return &c.Schedule.Warmup }, 0, maxSteps, nil},
		{"schedule.decay", "how long wsd falls at the end: a share of the run below 1, else steps", func(c *Config) any { return &c.Schedule.Decay }, 0, maxSteps, nil},
		{"schedule.final", "factor on the learning rates at the end", func(c *Config) any { return &c.Schedule.Final }, 0, 1, nil},
	}
	for _, class := range []struct {
		name  string
		at    func(c *Config) *Rule
		kinds []string
	}{
		{"matrix", func(c *Config) *Rule { return &c.Optim.Matrix }, []string{RuleMuon, RuleAdamW, RuleLion}},
		{"embedding", func(c *Config) *Rule { return &c.Optim.Embedding }, []string{RuleAdamW, RuleLion}},
		{"head", func(c *Config) *Rule { return &c.Optim.Head }, []string{RuleAdamW, RuleLion}},
		{"scalar", func(c *Config) *Rule { return &c.Optim.Scalar }, []string{RuleAdamW, RuleLion}},
		{"mhc", func(c *Config) *Rule { return &c.Optim.MHC }, []string{RuleAdamW, RuleLion}},
	} {
		key, at := "optim."+class.name+".", class.at
		out = append(out,
			field{key + "rule", "optimizer of the class", func(c *Config) any { return &at(c).Rule }, 0, 0, class.kinds},
			field{key + "lr", "learning rate before the schedule", func(c *Config) any { return &at(c).LR }, 0, 10, nil},
			field{key + "weight_decay", "decay of the weights, times the learning rate", func(c *Config) any { return &at(c).WeightDecay }, 0, 100, nil},
			field{key: key + "cautious", doc: "decay a weight only where its update moves it towards zero too", at: func(c *Config) any { return &at(c).Cautious }},
			field{key: key + "clip", doc: "these gradients take part in train.clip", at: func(c *Config) any { return &at(c).Clip }},
			field{key + "momentum", "muon: momentum", func(c *Config) any { return &at(c).Momentum }, 1e-6, 0.9999, nil},
			field{key + "momentum_start", "muon: momentum at the first step", func(c *Config) any { return &at(c).MomentumStart }, 1e-6, 0.9999, nil},
			field{key + "momentum_warmup", "muon: steps from momentum_start to momentum", func(c *Config) any { return &at(c).MomentumWarmup }, 0, maxSteps, nil},
			field{key + "newton_schulz", "muon: iterations of the orthogonalisation", func(c *Config) any { return &at(c).NewtonSchulz }, 1, 10, nil},
			field{key + "scaling", "muon: factor by shape", func(c *Config) any { return &at(c).Scaling }, 0, 0, []string{ScalingSpectral, ScalingAdam}},
			field{key + "beta1", "adamw, lion: decay of the first moment", func(c *Config) any { return &at(c).Beta1 }, 1e-6, 0.999999, nil},
			field{key + "beta2", "adamw, lion: decay of the second moment", func(c *Config) any { return &at(c).Beta2 }, 1e-6, 0.999999, nil},
			field{key + "eps", "adamw: added to the root", func(c *Config) any { return &at(c).Eps }, 1e-20, 1, nil},
		)
	}
	return append(out,
		field{"anomaly.window", "steps that running means and medians look back", func(c *Config) any { return &c.Anomaly.Window }, 8, 1 << 16, nil},
		field{"anomaly.loss_sigma", "standard deviations that a loss may lie above the mean; 0: off", func(c *Config) any { return &c.Anomaly.LossSigma }, 0, 1e3, nil},
		field{"anomaly.grad_ratio", "times the median that a gradient norm may be; 0: off", func(c *Config) any { return &c.Anomaly.GradRatio }, 0, 1e9, nil},
		field{"anomaly.entropy_sigma", "standard deviations that the entropy of the predictions may lie from the mean; 0: off", func(c *Config) any { return &c.Anomaly.EntropySigma }, 0, 1e3, nil},
		field{"anomaly.flip_rate", "share of trits that may change in a step; 0: off", func(c *Config) any { return &c.Anomaly.FlipRate }, 0, 1, nil},
		field{"anomaly.flip_ratio", "times the median that this share may be; 0: off", func(c *Config) any { return &c.Anomaly.FlipRatio }, 0, 1e9, nil},
		field{"anomaly.zero_min", "least share of zero trits; 0: off", func(c *Config) any { return &c.Anomaly.ZeroMin }, 0, 1, nil},
		field{"anomaly.zero_max", "largest share of zero trits; 0: off", func(c *Config) any { return &c.Anomaly.ZeroMax }, 0, 1, nil},
		field{"anomaly.cosine", "largest mean cosine between residual streams; 0: off", func(c *Config) any { return &c.Anomaly.Cosine }, 0, 1, nil},
		field{"anomaly.patience", "bad steps in a row after which the training stops; 0: never", func(c *Config) any { return &c.Anomaly.Patience }, 0, maxSteps, nil},

		field{key: "telemetry.tensorboard", doc: "write event files for TensorBoard", at: func(c *Config) any { return &c.Telemetry.TensorBoard }},
		field{key: "telemetry.tensorboard_dir", doc: "their directory (default: tensorboard in that of the run)", at: func(c *Config) any { return &c.Telemetry.TensorBoardDir }},
		field{key: "telemetry.histograms", doc: "with the distributions of trits and weights at evaluations", at: func(c *Config) any { return &c.Telemetry.Histograms }},
		field{key: "telemetry.sample", doc: "a text that the model goes on with at evaluations", at: func(c *Config) any { return &c.Telemetry.Sample }},
		field{"telemetry.sample_tokens", "tokens that it goes on for; 0: none", func(c *Config) any { return &c.Telemetry.SampleTokens }, 0, 4096, nil},
	)
}
