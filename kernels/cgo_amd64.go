//go:build cgo

package kernels

/*
#include "nc.h"
#include "nc_float.h"

extern const struct nc_set nc_set_scalar, nc_set_avx2, nc_set_avxvnni, nc_set_avx512vnni256,
	nc_set_avx512vnni;
*/
import "C"

import "golang.org/x/sys/cpu"

// csets is the C variants this CPU can run, best first.
func csets() []*Set {
	x := &cpu.X86
	avx2 := x.HasAVX2 && x.HasFMA && x.HasF16C
	avx512 := avx2 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL
	var s []*Set
	for _, v := range []struct {
		ok   bool
		name string
		c    *cset
	}{
		{avx512 && x.HasAVX512VNNI, "avx512vnni", &C.nc_set_avx512vnni},
		{avx512 && x.HasAVX512VNNI, "avx512vnni256", &C.nc_set_avx512vnni256},
		{avx2 && x.HasAVXVNNI, "avxvnni", &C.nc_set_avxvnni},
		{avx2, "avx2", &C.nc_set_avx2},
		{true, "scalar", &C.nc_set_scalar},
	} {
		if v.ok {
			set := newCSet(v.name, v.c)
			if v.name == "avx512vnni" && x.HasAVX512BF16 {
				set.MatMulBF16 = cMatMul("MatMulBF16", C.nc_matmul_fn(C.nc_matmul_avx512bf16), true)
				bindAttentionBF16(set, C.nc_attention_backward_fn(C.nc_attention_backward_avx512bf16))
			}
			s = append(s, set)
		}
	}
	return s
}
