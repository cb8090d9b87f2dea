// Package soak keeps `nanochat serve` busy for a long time and watches what it
// holds: memory, files, goroutines. It has no code of its own: everything is in the tests.
package soak
