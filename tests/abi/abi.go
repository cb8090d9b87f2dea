// Package abi compares the binary interface of the shared library with the one that
// was released: a text file for every ABI version, in testdata. It has no code of
// its own.
package abi
