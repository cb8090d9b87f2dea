// Package sink is where observations leave the process: a writer that never blocks
// and never fails its caller, and a file that survives a full disk and the removal
// of its directory.
package sink
