// Package server runs `nanochat serve` under the programs of others: OpenAI's
// Python package, a Go client, curl, nginx. It has no code of its own: everything is in
// the tests.
package server
