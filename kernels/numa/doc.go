// Package numa tells where the processors and the memory of this machine are,
// binds threads to processors and places memory on nodes.
//
// It knows no matrix and no model: CPUs, threads, bytes and pages only. On a
// machine with one node, and on systems other than Linux, everything works and
// places nothing; what could not be done is reported, never fatal.
package numa
