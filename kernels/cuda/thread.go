package cuda

import (
	"fmt"
	"runtime"
	"unsafe"
)

// Thread is the thread of a device inside Device.Do. Its methods queue work in order on
// one stream, unless they say that they wait.
type Thread struct {
	device  *Device
	api     *api
	context handle
	stream  handle
	modules []handle
	sources map[string]*Module // loaded, by source
	pool    pool
	early   bool             // inside of Early
	ops     *Ops             // nil until they are loaded
	blas    *Blas            // nil until it is made
	host    []unsafe.Pointer // pinned memory
	copies  handle           // the stream of Prefetch; 0 until it is used
	marks   []*Event         // without time, to be used again
	timers  []*Event         // with time
}

// Device is the device of the thread.
func (t *Thread) Device() *Device { return t.device }

// free gives everything back.
func (t *Thread) free() {
	if t.copies != 0 {
		t.api.StreamSync(t.copies)
		t.api.StreamDestroy(t.copies)
	}
	t.api.StreamSync(t.stream)
	if t.blas != nil {
		t.blas.free()
	}
	for _, e := range append(t.marks, t.timers...) {
		t.api.EventDestroy(e.handle)
	}
	for _, p := range t.host {
		t.api.HostFree(p)
	}
	for _, m := range t.modules {
		t.api.ModuleUnload(m)
	}
	for _, b := range t.pool.blocks {
		t.api.MemFree(b.at)
	}
	t.api.StreamDestroy(t.stream)
}

// Wait waits until all that was queued is done; errors of kernels come here at the latest.
func (t *Thread) Wait() error {
	if err := t.check("cuStreamSynchronize", t.api.StreamSync(t.stream)); err != nil {
		return err
	}
	return t.device.failed()
}

// Upload copies src to dst, which has room for it. Memory that is not pinned is copied
// before Upload returns; pinned memory must stay as it is until Wait.
func Upload[T Element](t *Thread, dst Ptr, src []T) error {
	if len(src) == 0 {
		return nil
	}
	bytes := uint64(len(src)) * uint64(unsafe.Sizeof(src[0]))
	err := t.check("cuMemcpyHtoDAsync", t.api.CopyToDevice(dst, unsafe.Pointer(unsafe.SliceData(src)), bytes, t.stream))
	runtime.KeepAlive(src)
	return err
}

// Download copies from src to dst and waits.
func Download[T Element](t *Thread, dst []T, src Ptr) error {
	if len(dst) == 0 {
		return nil
	}
	bytes := uint64(len(dst)) * uint64(unsafe.Sizeof(dst[0]))
	if err := t.check("cuMemcpyDtoHAsync", t.api.CopyToHost(unsafe.Pointer(unsafe.SliceData(dst)), src, bytes, t.stream)); err != nil {
		return err
	}
	err := t.Wait()
	runtime.KeepAlive(dst)
	return err
}

// Element is what buffers are made of.
type Element interface {
	~uint8 | ~int8 | ~uint16 | ~int32 | ~uint32 | ~float32 | ~int64 | ~uint64 | ~float64
}

// Copy copies bytes on the device.
func (t *Thread) Copy(dst, src Ptr, bytes uint64) error {
	return t.check("cuMemcpyDtoDAsync", t.api.CopyOnDevice(dst, src, bytes, t.stream))
}

// Fill writes one value to every byte.
func (t *Thread) Fill(p Ptr, value uint8, bytes uint64) error {
	return t.check("cuMemsetD8Async", t.api.Fill(p, value, bytes, t.stream))
}

// Pinned allocates memory of the host that the device reaches by itself: copies from and
// to it do not hold up the thread. It stays until the device is closed.
func Pinned[T Element](t *Thread, n int) ([]T, error) {
	var zero T
	if n <= 0 {
		return nil, fmt.Errorf("cuda: %d elements of pinned memory", n)
	}
	var p unsafe.Pointer
	if err := t.check("cuMemHostAlloc", t.api.HostAlloc(&p, uint64(n)*uint64(unsafe.Sizeof(zero)), 0)); err != nil {
		return nil, err
	}
	t.host = append(t.host, p)
	return unsafe.Slice((*T)(p), n), nil
}

// Module is compiled kernels on a device.
type Module struct{ handle handle }

// Kernel is one of them.
type Kernel struct {
	name   string
	handle handle
	early  bool // it waits by itself for the kernel in front of it
}

// Load puts compiled kernels (a CUBIN, or PTX that ends with a zero byte) on the device.
func (t *Thread) Load(image []byte) (*Module, error) {
	if len(image) == 0 {
		return nil, fmt.Errorf("cuda: an empty module")
	}
	m := &Module{}
	err := t.check("cuModuleLoadData", t.api.ModuleLoad(&m.handle, unsafe.Pointer(unsafe.SliceData(image))))
	runtime.KeepAlive(image)
	if err != nil {
		return nil, err
	}
	t.modules = append(t.modules, m.handle)
	return m, nil
}

// funcSharedBytes is CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES.
const funcSharedBytes = 8

// Kernel finds a kernel by name. shared is the most dynamic shared memory that launches
// will ask for, in bytes.
func (t *Thread) Kernel(m *Module, name string, shared int) (*Kernel, error) {
	k := &Kernel{name: name}
	c := append([]byte(name), 0)
	if err := t.check("cuModuleGetFunction "+name, t.api.ModuleGet(&k.handle, m.handle, &c[0])); err != nil {
		return nil, err
	}
	if shared > 48<<10 { // more has to be asked for
		if err := t.check("cuFuncSetAttribute "+name, t.api.FuncSet(k.handle, funcSharedBytes, int32(shared))); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Shape is the blocks of a launch, the threads of a block, and the dynamic shared memory
// of a block in bytes.
type Shape struct {
	Grid, Block [3]uint32
	Shared      uint32
}

// Launch queues a kernel. args is the kernel's only parameter: a structure with the
// layout of the one in its source.
func Launch[A any](t *Thread, k *Kernel, s Shape, args *A) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	size := unsafe.Sizeof(*args)
	pin.Pin(args)
	pin.Pin(&size)
	// CU_LAUNCH_PARAM_BUFFER_POINTER is 1, _BUFFER_SIZE 2, _END 0.
	extra := [5]uintptr{1, uintptr(unsafe.Pointer(args)), 2, uintptr(unsafe.Pointer(&size)), 0}
	pin.Pin(&extra)
	if t.early && k.early {
		return t.launchEarly(k, s, unsafe.Pointer(&extra))
	}
	return t.check("cuLaunchKernel "+k.name, t.api.Launch(k.handle, s.Grid[0], s.Grid[1], s.Grid[2],
		s.Block[0], s.Block[1], s.Block[2], s.Shared, t.stream, nil, unsafe.Pointer(&extra)))
}

// Graph is work that was recorded once and is launched as a whole.
type Graph struct{ exec handle }

// Graph records the work that f queues, without doing it. f must not wait, allocate or copy from
// memory that is not pinned.
func (t *Thread) Graph(f func() error) (*Graph, error) {
	const relaxed = 2 // other threads of the process may do what they like meanwhile
	if err := t.check("cuStreamBeginCapture", t.api.CaptureBegin(t.stream, relaxed)); err != nil {
		return nil, err
	}
	var graph handle
	ended := false
	defer func() { // after a panic of f the stream is to be usable
		if !ended {
			t.api.CaptureEnd(t.stream, &graph)
		}
	}()
	failed := f()
	ended = true
	err := t.check("cuStreamEndCapture", t.api.CaptureEnd(t.stream, &graph))
	if failed != nil {
		err = failed
	}
	g := &Graph{}
	if err == nil {
		err = t.check("cuGraphInstantiate", t.api.Instantiate(&g.exec, graph, 0))
	}
	if graph != 0 {
		t.api.GraphDestroy(graph)
	}
	if err != nil {
		return nil, err
	}
	return g, nil
}

// Replay queues the work of a graph.
func (t *Thread) Replay(g *Graph) error {
	return t.check("cuGraphLaunch", t.api.GraphLaunch(g.exec, t.stream))
}

// Drop frees a graph.
func (t *Thread) Drop(g *Graph) {
	t.api.ExecDestroy(g.exec)
	g.exec = 0
}
