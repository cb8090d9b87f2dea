// Package ternary turns float32 matrices into ternary ones and back.
//
// It is the only weight quantiser of the engine: training, conversion and
// initialisation call it, so that what is trained is what is served. It knows
// matrices, trits and scales; products are in kernels, files in core/gguf.
//
// # Quantiser
//
// For every group of Group consecutive inputs of one output row:
//
//	s = f16(mean|w|), at least 2^-14 (the smallest normal half)
//	t = clamp(roundHalfToEven(w/s), -1, 1)
//
// f16 rounds half to even. The mean is the canonical float32 sum of package
// kernels (16 strided partial sums, then a fixed tree) divided by the length of
// the group; the last group of a row may be shorter. A scale is stored and never
// computed again from dequantised weights, which would shrink it by the share of
// zeros.
package ternary
