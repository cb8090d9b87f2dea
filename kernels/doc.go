// Package kernels computes on slices: ternary and float matrix products, norms,
// activations, softmax, RoPE and attention, and the backward of each.
//
// It knows no model, no file and no thread: every kernel runs on the calling
// thread. A Set is one implementation; the Go reference is the definition, and
// every other set gives the same bits, whatever the instruction set.
//
// # Canonical order
//
// A float32 sum over i has 16 partial sums, s[i mod 16], each built by FMA (or
// addition) over ascending i from zero, and reduced as s[l]+s[l+8], then +4,
// +2, +1. Integer sums are exact. exp, and what is built on it, is one
// polynomial evaluated with FMA.
package kernels
