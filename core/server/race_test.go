//go:build race

package server

// race says that the race detector runs, with which memory and time mean nothing.
const race = true
