// Package model is the network: a configuration, its weights, and the step that
// turns token ids into logits.
//
// It knows no text, no sampling and no schedule: those are the business of its
// callers. Weights come from a file (Load), from a seed (Init) or from another
// program's file (Load of a foreign architecture, Convert), and go to files (Save,
// Export).
//
// # The network
//
// A decoder-only transformer with pre-norm: RMS norms, rotary positions, grouped
// query attention (query head h reads key/value head h/(Heads/KVHeads)), a
// feed-forward part of one of three kinds, and optionally norms of queries and
// keys, norms in front of the output and the down projection (sub-norms), a soft
// cap on logits, and per layer one scalar on the residual stream and one on the
// embedding that is added to it. Residual streams are mixed as package mhc
// defines. Projections are ternary with int8 activations; the embedding and the
// head are f16 or q8_0, and a q8_0 head takes int8 activations too. Foreign models
// may have dense projections, and their heads take float activations.
//
// # Training
//
// A Trainer holds latent float32 weights and a Model made of them by the quantisers
// of packages ternary and gguf. Its forward is that of inference, function by function
// and kernel by kernel: it only leaves what it computes on a tape, from which an
// explicit backward goes through the layers in reverse. So what is trained is what a
// file holds and what is served, bit for bit.
//
// A GPUTrainer is the same on a device, with the optimizer: weights, gradients and state
// stay there, and the host has a mirror of the weights. Its gradients are those of a Trainer
// within tolerances that docs/CUDA.md states; what it quantises is the same to the bit.
//
// # One answer
//
// The logits of a token depend on the weights and on the tokens before it in its
// sequence, bit for bit: not on the number of workers, on what else is in the
// step, on how a prompt is cut into steps, or on the kernel set.
package model
