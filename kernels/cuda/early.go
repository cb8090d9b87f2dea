package cuda

import (
	"runtime"
	"slices"
	"unsafe"
)

// earlyVersion is CUDA 12.3, whose graphs keep what Early asks for.
const earlyVersion = 12030

// Early lets kernels that f queues begin before the one in front of each has ended, if they are
// made for it: they fetch weights meanwhile, which f's kernels must not write. The results are
// the same. It needs compute capability 9.0 or newer; else f's kernels begin as always.
func (t *Thread) Early(f func() error) error {
	d := t.device.driver
	if t.device.Major < 9 || d.version < earlyVersion || slices.Contains(d.off, FeatureEarly) {
		return f()
	}
	t.early = true
	defer func() { t.early = false }()
	return f()
}

// mayBeEarly marks kernels that call nc_after_previous.
func mayBeEarly(kernels ...*Kernel) {
	for _, k := range kernels {
		k.early = true
	}
}

// launchConfig is CUlaunchConfig.
type launchConfig struct {
	grid, block [3]uint32
	shared, _   uint32
	stream      handle
	attributes  unsafe.Pointer
	count, _    uint32
}

// launchAttribute is CUlaunchAttribute, whose value has 64 bytes.
type launchAttribute struct {
	id, _ int32
	value [16]int32
}

// programmaticSerialization is CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION.
const programmaticSerialization = 6

// launchEarly is Launch of a kernel that waits for the one in front of it. The caller has pinned extra.
func (t *Thread) launchEarly(k *Kernel, s Shape, extra unsafe.Pointer) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	a := &launchAttribute{id: programmaticSerialization, value: [16]int32{1}}
	pin.Pin(a)
	c := &launchConfig{grid: s.Grid, block: s.Block, shared: s.Shared, stream: t.stream, attributes: unsafe.Pointer(a), count: 1}
	pin.Pin(c)
	return t.check("cuLaunchKernelEx "+k.name, t.api.LaunchEx(unsafe.Pointer(c), k.handle, nil, extra))
}
