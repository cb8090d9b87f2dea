//go:build cgo

package kernels

/*
#include "nc.h"

extern const struct nc_set nc_set_scalar, nc_set_neon;
*/
import "C"

import "golang.org/x/sys/cpu"

// csets is the C variants this CPU can run, best first.
func csets() []*Set {
	var s []*Set
	if cpu.ARM64.HasASIMDDP {
		s = append(s, newCSet("neon", &C.nc_set_neon))
	}
	return append(s, newCSet("scalar", &C.nc_set_scalar))
}
