// Package capi is the C interface: include/nanochat.h says what it promises.
//
// It translates and decides nothing: arguments of C become calls of core/chat, core/zoo
// and core/train, and results and errors become numbers, bytes and handles. The shim*.c
// hold the functions of the header. They turn a forked child away before anything of Go is
// entered, and complete structures of other versions; then they call the exports of this
// package.
//
// It is no main package, so that other extensions can carry the same interface in
// one Go runtime; capi/libnanochat is the shared library.
package capi
