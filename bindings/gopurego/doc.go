// Package gopurego runs, trains and fetches models through libnanochat.so in a Go program
// that is built without cgo.
//
// It knows the C interface (include/nanochat.h) and nothing of the engine: the library
// is loaded when Open is called. A program that may use cgo, or is content with the Go
// kernels, imports core/chat instead and has the same without a second library.
//
// The library has a Go runtime of its own. Both get along in one process, but the
// one that was loaded last has the signal by which goroutines are preempted: while the
// library is loaded, a loop of the program that calls no function delays its garbage
// collector.
//
// A Library, a Model and a Session are for any number of goroutines. A Stream and a Job are
// for one; Cancel and Close may be called from any.
package gopurego
