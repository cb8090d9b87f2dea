// Package introspect is for looking at configurations, vocabularies and prepared
// data from Python, as ordinary Python classes. gopy makes a CPython extension of
// it (scripts/build-gopy), which also exports the C interface: one Go runtime, as
// a process may have only one.
//
// It is for notebooks and scripts that look at things. Numbers go one by one
// through it; models run through package nanochat, on the same C interface.
//
// The signatures are what gopy can turn into Python: no generics, no maps,
// integers as int.
package introspect

import _ "github.com/architehc/nanochat/capi" // its exports are the C interface
