// Package config turns TOML into typed structs, with defaults, ranges, and for
// every value the place it came from.
//
// Every key is read or rejected: an unknown key, a wrong type and a value out of
// range are errors with file, line, key and hint. It reads no environment and
// no file but the presets inside it; what a value means is decided elsewhere.
package config
