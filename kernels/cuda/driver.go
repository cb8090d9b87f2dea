package cuda

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"github.com/architehc/nanochat/kernels/dl"
)

// code is a CUresult.
type code int32

// The codes that are treated one by one.
const (
	codeOutOfMemory code = 2
	codeNoDevice    code = 100
)

// handle is a pointer of the driver to something of its own.
type handle uintptr

// Ptr is an address in the memory of a device.
type Ptr uint64

// api is the functions of libcuda that are used, as cuda.h declares them. The suffixes
// are versions of the interface: those of CUDA 12.
type api struct {
	Init          func(flags uint32) code                                                                                                                            `c:"cuInit"`
	Version       func(v *int32) code                                                                                                                                `c:"cuDriverGetVersion"`
	ErrorName     func(c code, name **byte) code                                                                                                                     `c:"cuGetErrorName"`
	ErrorString   func(c code, text **byte) code                                                                                                                     `c:"cuGetErrorString"`
	DeviceCount   func(n *int32) code                                                                                                                                `c:"cuDeviceGetCount"`
	DeviceGet     func(d *int32, ordinal int32) code                                                                                                                 `c:"cuDeviceGet"`
	DeviceName    func(name *byte, length int32, d int32) code                                                                                                       `c:"cuDeviceGetName"`
	DeviceAttr    func(v *int32, attribute int32, d int32) code                                                                                                      `c:"cuDeviceGetAttribute"`
	DeviceMem     func(bytes *uint64, d int32) code                                                                                                                  `c:"cuDeviceTotalMem_v2"`
	Retain        func(ctx *handle, d int32) code                                                                                                                    `c:"cuDevicePrimaryCtxRetain"`
	Release       func(d int32) code                                                                                                                                 `c:"cuDevicePrimaryCtxRelease_v2"`
	SetCurrent    func(ctx handle) code                                                                                                                              `c:"cuCtxSetCurrent"`
	Synchronize   func() code                                                                                                                                        `c:"cuCtxSynchronize"`
	MemInfo       func(free, total *uint64) code                                                                                                                     `c:"cuMemGetInfo_v2"`
	MemAlloc      func(p *Ptr, bytes uint64) code                                                                                                                    `c:"cuMemAlloc_v2"`
	MemFree       func(p Ptr) code                                                                                                                                   `c:"cuMemFree_v2"`
	HostAlloc     func(p *unsafe.Pointer, bytes uint64, flags uint32) code                                                                                           `c:"cuMemHostAlloc"`
	HostFree      func(p unsafe.Pointer) code                                                                                                                        `c:"cuMemFreeHost"`
	CopyToDevice  func(d Ptr, h unsafe.Pointer, bytes uint64, s handle) code                                                                                         `c:"cuMemcpyHtoDAsync_v2"`
	CopyToHost    func(h unsafe.Pointer, d Ptr, bytes uint64, s handle) code                                                                                         `c:"cuMemcpyDtoHAsync_v2"`
	CopyOnDevice  func(dst, src Ptr, bytes uint64, s handle) code                                                                                                    `c:"cuMemcpyDtoDAsync_v2"`
	Fill          func(p Ptr, value uint8, bytes uint64, s handle) code                                                                                              `c:"cuMemsetD8Async"`
	StreamCreate  func(s *handle, flags uint32) code                                                                                                                 `c:"cuStreamCreate"`
	StreamSync    func(s handle) code                                                                                                                                `c:"cuStreamSynchronize"`
	StreamDestroy func(s handle) code                                                                                                                                `c:"cuStreamDestroy_v2"`
	StreamWait    func(s, e handle, flags uint32) code                                                                                                               `c:"cuStreamWaitEvent"`
	EventCreate   func(e *handle, flags uint32) code                                                                                                                 `c:"cuEventCreate"`
	EventRecord   func(e, s handle) code                                                                                                                             `c:"cuEventRecord"`
	EventSync     func(e handle) code                                                                                                                                `c:"cuEventSynchronize"`
	EventElapsed  func(ms *float32, from, to handle) code                                                                                                            `c:"cuEventElapsedTime"`
	EventDestroy  func(e handle) code                                                                                                                                `c:"cuEventDestroy_v2"`
	ModuleLoad    func(m *handle, image unsafe.Pointer) code                                                                                                         `c:"cuModuleLoadData"`
	ModuleUnload  func(m handle) code                                                                                                                                `c:"cuModuleUnload"`
	ModuleGet     func(f *handle, m handle, name *byte) code                                                                                                         `c:"cuModuleGetFunction"`
	FuncSet       func(f handle, attribute int32, value int32) code                                                                                                  `c:"cuFuncSetAttribute"`
	CaptureBegin  func(s handle, mode uint32) code                                                                                                                   `c:"cuStreamBeginCapture_v2"`
	CaptureEnd    func(s handle, graph *handle) code                                                                                                                 `c:"cuStreamEndCapture"`
	Instantiate   func(exec *handle, graph handle, flags uint64) code                                                                                                `c:"cuGraphInstantiateWithFlags"`
	GraphLaunch   func(exec, s handle) code                                                                                                                          `c:"cuGraphLaunch"`
	ExecDestroy   func(exec handle) code                                                                                                                             `c:"cuGraphExecDestroy"`
	GraphDestroy  func(graph handle) code                                                                                                                            `c:"cuGraphDestroy"`
	LaunchEx      func(config unsafe.Pointer, f handle, params, extra unsafe.Pointer) code                                                                           `c:"cuLaunchKernelEx"`
	TensorMap     func(m unsafe.Pointer, kind int32, rank uint32, at Ptr, dims, strides, box, steps unsafe.Pointer, interleave, swizzle, promotion, fill int32) code `c:"cuTensorMapEncodeTiled"`
	Launch        func(f handle, gx, gy, gz, bx, by, bz, shared uint32, s handle, params, extra unsafe.Pointer) code                                                 `c:"cuLaunchKernel"`
}

// Driver is the CUDA driver of this machine.
type Driver struct {
	api     api
	path    string
	version int
	off     []string // of Features: what is not used
}

// LibDirVariable names directories, separated by colons, that are searched for the
// libraries of CUDA before any others.
const LibDirVariable = "NANOCHAT_CUDA_LIB_DIR"

// minVersion is CUDA 12.0, the first with the functions of api.
const minVersion = 12000

// OpenDriver opens the driver. dirs are searched before the system's directories. A machine
// without a driver is a *dl.Error; one without a GPU, or with a driver that is too old, an
// *Error.
func OpenDriver(dirs ...string) (*Driver, error) {
	lib, err := dl.Open(dl.Search{
		Name: "the CUDA driver", Files: []string{"libcuda.so.1"}, Dirs: dirs,
		Hint: "it comes with the driver of an NVIDIA GPU; in a container, start it with access to the GPU",
	})
	if err != nil {
		return nil, err
	}
	d := &Driver{path: lib.Path()}
	if err := lib.Bind(&d.api); err != nil {
		return nil, err
	}
	if err := d.check("cuInit", d.api.Init(0)); err != nil {
		return nil, err
	}
	var v int32
	if err := d.check("cuDriverGetVersion", d.api.Version(&v)); err != nil {
		return nil, err
	}
	if d.version = int(v); v < minVersion {
		return nil, &Error{Call: "cuDriverGetVersion", Text: fmt.Sprintf("the driver is for CUDA %s, needed is %s or newer", version(int(v)), version(minVersion)),
			Hint: "install a newer driver, 525 at least"}
	}
	return d, nil
}

// openFor opens a library of CUDA. Libraries of CUDA 13 need a driver for it, 580 or newer: where the driver
// is for CUDA 12, one of that is looked for everywhere first.
func openFor(s dl.Search) (*dl.Library, error) {
	if lib, err := dl.Open(dl.Search{Name: "the CUDA driver", Files: []string{"libcuda.so.1"}, Dirs: s.Dirs}); err == nil {
		var d struct {
			Version func(v *int32) code `c:"cuDriverGetVersion"`
		}
		v := new(int32)
		if lib.Bind(&d) == nil && d.Version(v) == 0 && *v/1000 == 12 {
			first := s
			first.Files = slices.DeleteFunc(slices.Clone(s.Files), func(f string) bool { return !strings.HasSuffix(f, ".so.12") })
			if lib, err := dl.Open(first); err == nil {
				return lib, nil
			}
		}
	}
	return dl.Open(s)
}

// Version is the newest version of CUDA that the driver knows, such as "12.4".
func (d *Driver) Version() string { return version(d.version) }

// Path is the file of the driver.
func (d *Driver) Path() string { return d.path }

// version writes 12040 as 12.4.
func version(v int) string { return fmt.Sprintf("%d.%d", v/1000, v%1000/10) }

// Error is a call of the driver or the compiler that failed.
type Error struct {
	// Call is the function, Device the ordinal number of the device, -1 if it is about none.
	Call   string
	Device int
	// Code is its result and Name that result's name; 0 and "" where the fault was found here.
	Code int
	Name string
	// Text says what is wrong and Hint what to do about it; Hint may be empty.
	Text, Hint string
}

func (e *Error) Error() string {
	s := "cuda: " + e.Call + ": "
	if e.Name != "" {
		s += e.Name + ": "
	}
	return s + e.Text
}

// LostError is a device that cannot be used any more by this process: every call on it returns this
// error. What was in its memory is gone; another process can begin anew.
type LostError struct {
	Device int
	// Err is the error that the loss was found with.
	Err *Error
}

func (e *LostError) Error() string {
	return fmt.Sprintf("cuda: device %d is lost: %s", e.Device, strings.TrimPrefix(e.Err.Error(), "cuda: "))
}

// Unwrap is Err, which has the hint.
func (e *LostError) Unwrap() error { return e.Err }

// hints are for the codes that a user can do something about.
var hints = map[code]string{
	codeOutOfMemory: "close what else uses the GPU",
	3:               "the driver is shutting down, or this process was forked after it was loaded",
	34:              "libcuda is the stub for building programs, not the driver: remove its directory from LD_LIBRARY_PATH",
	36:              "install a newer driver",
	46:              "another process has the GPU for itself, or it is being reset: see nvidia-smi",
	codeNoDevice:    "there is a driver, but no GPU that this process may use: see CUDA_VISIBLE_DEVICES and the settings of the container",
	101:             "there are fewer GPUs: nvidia-smi lists them",
	200:             "the kernel's file is damaged, or is for a newer driver: remove the directory of the cache, install a newer driver",
	209:             "the kernel was compiled for another GPU: remove the directory of the cache",
	214:             "the memory of the GPU has failed (ECC): see nvidia-smi -q; then start again",
	218:             "the driver is older than the compiler: install a newer one",
	220:             "a link between GPUs has failed (NVLink): see nvidia-smi nvlink -s; then start again",
	222:             "the driver is older than the compiler: install a newer one",
	226:             "a fault of the hardware, or of access to another GPU: see dmesg for Xid; then start again",
	700:             "a kernel used memory that is not its own: please report it",
	702:             "a kernel ran longer than the display's watchdog allows: use a GPU without a display",
	709:             "the context was destroyed by another part of this process",
	710:             "a kernel stopped at an assertion: please report it",
	714:             "the stack of a kernel was damaged: please report it",
	715:             "a kernel has an instruction that this GPU has not: remove the directory of the cache",
	716:             "a kernel used an address that is not aligned: please report it",
	717:             "a kernel used memory of the wrong kind: please report it",
	718:             "a kernel jumped out of its code: please report it",
	719:             "a kernel failed, or the GPU fell off the bus: see dmesg for Xid; then start again",
	802:             "the GPU is not ready yet: on machines with NVSwitch, is nvidia-fabricmanager running?",
	803:             "the driver was updated without a restart: restart the machine or reload its module",
	804:             "this GPU does not take the newer driver of CUDA's compatibility package: remove that from the search path",
	805:             "is the server of MPS running? CUDA_MPS_PIPE_DIRECTORY names its directory",
	806:             "the connection to the server of MPS failed; then start again",
	810:             "the server of MPS ended this process's work; start again",
	919:             "the GPUs' fabric is not ready yet: is nvidia-fabricmanager running?",
	999:             "see dmesg for Xid; then start again",
}

// sticky are the codes after which a context cannot be used any more: those of which cuda.h says that
// the process has to end, and failures of hardware and of the context itself.
var sticky = map[code]bool{
	4: true, 201: true, 214: true, 220: true, 226: true, 700: true, 702: true, 709: true, 710: true, 714: true, 715: true, 716: true, 717: true, 718: true, 719: true,
	721: true, 806: true, 810: true, 911: true, 999: true,
}

// check makes an error of a result.
func (d *Driver) check(call string, c code) error {
	if c == 0 {
		return nil
	}
	return d.checkOn(call, -1, c)
}

// checkOn is the error of a result that is not 0.
func (d *Driver) checkOn(call string, device int, c code) *Error {
	e := &Error{Call: call, Device: device, Code: int(c), Name: fmt.Sprintf("error %d", c), Text: "unknown error", Hint: hints[c]}
	var p *byte
	if d.api.ErrorName(c, &p) == 0 {
		e.Name = text(p)
	}
	if d.api.ErrorString(c, &p) == 0 {
		e.Text = text(p)
	}
	return e
}

// text is a C string of the driver's, which stays where it is.
func text(p *byte) string {
	if p == nil {
		return ""
	}
	n := 0
	for *(*byte)(unsafe.Add(unsafe.Pointer(p), n)) != 0 {
		n++
	}
	return string(unsafe.Slice(p, n))
}

// LibDirs is the directories of LibDirVariable as getenv gives it, those of NVIDIA's packages in Python
// environments (VIRTUAL_ENV, CONDA_PREFIX, the user's below HOME, the system's), and the CUDA toolkit's. They
// may have wildcards.
func LibDirs(getenv func(string) string) (dirs []string) {
	for _, dir := range filepath.SplitList(getenv(LibDirVariable)) {
		if dir != "" {
			dirs = append(dirs, dir)
		}
	}
	if env := getenv("VIRTUAL_ENV"); env != "" {
		dirs = append(dirs, filepath.Join(env, "lib/python3*/site-packages/nvidia/*/lib"))
	}
	if env := getenv("CONDA_PREFIX"); env != "" {
		dirs = append(dirs, filepath.Join(env, "lib"), filepath.Join(env, "lib/python3*/site-packages/nvidia/*/lib"))
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		dirs = append(dirs, filepath.Join(home, ".local/lib/python3*/site-packages/nvidia/*/lib"))
	}
	return append(dirs, "/usr/local/lib/python3*/*-packages/nvidia/*/lib", "/usr/lib/python3*/*-packages/nvidia/*/lib", "/usr/local/cuda/lib64", "/usr/local/cuda-1[23]*/lib64")
}
