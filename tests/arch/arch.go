// Package arch holds the rules of the source tree as tests: which package may
// import which, and what may stand where. It has no code of its own.
package arch
