// Package c runs programs in C against the shared library: what include/nanochat.h
// promises, checked from the other side. It has no code of its own.
package c
