// Package train runs the loop that makes a model out of text: batches, gradients,
// updates, evaluation, checkpoints, metrics, and the detectors that notice when a
// run goes wrong.
//
// It owns the order of things and nothing of their insides: the network is
// core/model's, the updates are core/optim's, the batches core/data's and the files
// of a checkpoint core/checkpoint's.
//
// # Resuming
//
// A checkpoint holds everything that later steps depend on. A run that was stopped
// anywhere, by an interrupt, a crash or a loss of power, and resumed gives the
// weights, bit for bit, and the metrics of one that never stopped, with any number
// of threads, as long as the kernel set is the same. The schedule, the length and
// other keys may change at a resume: they are reported, and the new values hold
// from there on. The model, the data and the seed may not.
//
// # Where it computes
//
// The loop hands whole steps to a learner. That of the processor is a model.Trainer with an
// optim.Optimizer; that of GPUs has one model.GPUTrainer on each, which learn an equal part
// of the rows and add up their gradients. While GPUs compute, the loop takes the next step's
// data and has it copied, and a checkpoint goes to the disk; the cursor of a checkpoint is
// still that of its step. A checkpoint does not say where it was made: it goes on anywhere,
// with the same bits on the same kind of processor or GPU.
//
// # Files
//
// A run writes into one directory:
//
//	config.toml      every key of the configuration, as it was understood
//	metrics.jsonl    one line for each step; see Metrics
//	tensorboard/     the same and more, for TensorBoard; see core/telemetry/events
//	checkpoints/     see core/checkpoint
//	best.gguf        the model of the best evaluation
//	model.gguf       the model at the end
//	run_id           the name of the run in logs and traces, if there are any
//	.lock            held by the process that writes here
//	diverged/        the state of a run that was stopped because it diverged
package train
