//go:build cgo

package kernels

/*
#include "roofline.h"
*/
import "C"

import "golang.org/x/sys/cpu"

const peakChains = 12 // instructions per iteration

func limits() (Limits, bool) {
	x := &cpu.X86
	var l Limits
	switch {
	case x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL:
		l.FMA = Peak{"vfmaddps", 32 * peakChains, func(n int) { C.nc_peak_fma512(i64(n)) }}
		l.Read = func(b []byte) { C.nc_read512(u8p(b), i64(len(b))) }
	case x.HasAVX2 && x.HasFMA:
		l.FMA = Peak{"vfmaddps", 16 * peakChains, func(n int) { C.nc_peak_fma256(i64(n)) }}
		l.Read = func(b []byte) { C.nc_read256(u8p(b), i64(len(b))) }
	default:
		return l, false
	}
	switch {
	case x.HasAVX512VNNI:
		l.Dot8 = Peak{"vpdpbusd", 128 * peakChains, func(n int) { C.nc_peak_vpdpbusd512(i64(n)) }}
	case x.HasAVXVNNI:
		l.Dot8 = Peak{"vpdpbusd", 64 * peakChains, func(n int) { C.nc_peak_vpdpbusd256(i64(n)) }}
	default:
		l.Dot8 = Peak{"vpmaddubsw+vpaddw", 64 * peakChains, func(n int) { C.nc_peak_vpmaddubsw256(i64(n)) }}
	}
	if x.HasAVX512BF16 {
		l.DotBF16 = Peak{"vdpbf16ps", 64 * peakChains, func(n int) { C.nc_peak_vdpbf16ps512(i64(n)) }}
	}
	return l, true
}
