package kernels

import "golang.org/x/sys/cpu"

// Features is the names of this CPU's features that a set or a benchmark may
// use, in a fixed order: for reports.
func Features() []string {
	x, a := &cpu.X86, &cpu.ARM64
	var names []string
	for _, f := range []struct {
		name string
		has  bool
	}{
		{"avx2", x.HasAVX2}, {"fma", x.HasFMA}, {"f16c", x.HasF16C}, {"avxvnni", x.HasAVXVNNI},
		{"avx512f", x.HasAVX512F}, {"avx512bw", x.HasAVX512BW}, {"avx512dq", x.HasAVX512DQ}, {"avx512vl", x.HasAVX512VL},
		{"avx512vnni", x.HasAVX512VNNI}, {"avx512bf16", x.HasAVX512BF16},
		{"amx-tile", x.HasAMXTile}, {"amx-int8", x.HasAMXInt8}, {"amx-bf16", x.HasAMXBF16},
		{"asimd", a.HasASIMD}, {"asimddp", a.HasASIMDDP}, {"i8mm", a.HasI8MM}, {"sve", a.HasSVE}, {"sve2", a.HasSVE2},
	} {
		if f.has {
			names = append(names, f.name)
		}
	}
	return names
}
