// Package bench measures this machine, the kernels and a model, and says how
// close they come to what the machine can do.
//
// It decides what is measured and how; it opens no file but those of the
// operating system that describe the machine, and it changes nothing. Every
// number is the median of at least five repetitions, with the smallest and the
// largest beside it, because machines are shared.
//
// # Limits
//
// The limit of a kernel is the lower of two roofs, both measured in turn with the
// kernel in the same process on the same threads: the rate of the instruction it
// is made of, and the rate at which a bare loop reads its weights. A matrix that a
// cache holds is therefore compared with that cache.
package bench
