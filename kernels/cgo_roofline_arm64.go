//go:build cgo

package kernels

/*
#include "roofline.h"
*/
import "C"

import "golang.org/x/sys/cpu"

const peakChains = 12 // instructions per iteration

func limits() (Limits, bool) {
	l := Limits{
		FMA:  Peak{"fmla", 8 * peakChains, func(n int) { C.nc_peak_fma128(i64(n)) }},
		Read: func(b []byte) { C.nc_read128(u8p(b), i64(len(b))) },
	}
	if cpu.ARM64.HasASIMDDP {
		l.Dot8 = Peak{"sdot", 32 * peakChains, func(n int) { C.nc_peak_sdot(i64(n)) }}
	}
	return l, true
}
