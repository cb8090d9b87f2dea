// Command libnanochat is the shared library: built with -buildmode=c-shared it
// exports what include/nanochat.h declares. scripts/build-lib builds it.
package main

import _ "github.com/architehc/nanochat/capi"

func main() {}
