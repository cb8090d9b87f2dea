// Package e2e runs the built command line as its users do. It has no code of its
// own: everything is in the tests.
package e2e
