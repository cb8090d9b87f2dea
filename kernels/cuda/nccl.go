package cuda

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/architehc/nanochat/kernels/dl"
)

// ncclAPI is the functions of libnccl that are used, as nccl.h declares them. Results are
// ncclResult_t.
type ncclAPI struct {
	Version    func(v *int32) int32                                                                   `c:"ncclGetVersion"`
	Text       func(result int32) *byte                                                               `c:"ncclGetErrorString"`
	Last       func(c handle) *byte                                                                   `c:"ncclGetLastError,optional"` // since 2.13
	ID         func(id *[16]uint64) int32                                                             `c:"ncclGetUniqueId"`
	Init       func(c *handle, ranks int32, id ncclID, rank int32, config *ncclConfig) int32          `c:"ncclCommInitRankConfig,optional"`   // since 2.14
	InitByList func(c *handle, ranks, rank, ids int32, id *ncclID, config *ncclConfig) int32          `c:"ncclCommInitRankScalable,optional"` // since 2.23
	AsyncError func(c handle, result *int32) int32                                                    `c:"ncclCommGetAsyncError"`
	AllReduce  func(src, dst Ptr, count uint64, kind, operation int32, c handle, stream handle) int32 `c:"ncclAllReduce"`
	Finalize   func(c handle) int32                                                                   `c:"ncclCommFinalize,optional"` // since 2.14
	Destroy    func(c handle) int32                                                                   `c:"ncclCommDestroy"`
	Abort      func(c handle) int32                                                                   `c:"ncclCommAbort"`
}

// ncclID is ncclUniqueId, 128 bytes; Init takes it by value.
type ncclID struct{ data [16]uint64 }

// ncclConfig is the beginning of ncclConfig_t, as of 2.14; newer libraries fill in the rest.
type ncclConfig struct {
	size     uint64
	magic    uint32
	version  uint32
	blocking int32
	_        int32
}

const (
	ncclMagic      = 0xcafebeef // NCCL_API_MAGIC
	ncclInProgress = 7
	ncclFloat32    = 7
	ncclFloat64    = 8
	ncclSum        = 0
)

// NCCL is NVIDIA's library of operations of several GPUs together.
type NCCL struct {
	api     ncclAPI
	path    string
	version int32
}

// OpenNCCL opens NCCL, 2.14 or newer. dirs are searched before the system's directories. A machine
// without it is a *dl.Error.
func OpenNCCL(dirs ...string) (*NCCL, error) {
	const hint = "pip install nvidia-nccl-cu13 (or -cu12), or install NCCL; " + LibDirVariable + " names its directory"
	lib, err := dl.Open(dl.Search{Name: "NCCL", Files: []string{"libnccl.so.2", "libnccl.so"}, Dirs: dirs, Hint: hint})
	if err != nil {
		return nil, err
	}
	l := &NCCL{path: lib.Path()}
	if err := lib.Bind(&l.api); err != nil {
		return nil, err
	}
	if l.api.Init == nil && l.api.InitByList == nil {
		return nil, &dl.Error{Library: "NCCL", Path: l.path, Missing: []string{"ncclCommInitRankConfig"}, Hint: hint}
	}
	return l, l.check("ncclGetVersion", -1, 0, l.api.Version(&l.version))
}

// Version of the library, such as "2.23.4".
func (l *NCCL) Version() string {
	return fmt.Sprintf("%d.%d.%d", l.version/10000, l.version/100%100, l.version%100)
}

// Path is the file of the library.
func (l *NCCL) Path() string { return l.path }

// check makes an error of a result.
func (l *NCCL) check(call string, device int, c handle, result int32) error {
	if result == 0 {
		return nil
	}
	names := [...]string{"ncclSuccess", "ncclUnhandledCudaError", "ncclSystemError", "ncclInternalError", "ncclInvalidArgument", "ncclInvalidUsage", "ncclRemoteError", "ncclInProgress", "ncclTimeout"}
	e := &Error{Call: call, Device: device, Code: int(result), Name: fmt.Sprintf("ncclResult %d", result), Text: text(l.api.Text(result)),
		Hint: "NCCL_DEBUG=WARN in the environment lets NCCL say more"}
	if result > 0 && int(result) < len(names) {
		e.Name = names[result]
	}
	if l.api.Last != nil && c != 0 {
		if last := text(l.api.Last(c)); last != "" {
			e.Text += ": " + last
		}
	}
	return e
}

// CommID is what the members of a group of devices have in common.
type CommID struct{ id ncclID }

// NewCommID is that of a new group.
func (l *NCCL) NewCommID() (CommID, error) {
	id := new(CommID)
	err := l.check("ncclGetUniqueId", -1, 0, l.api.ID(&id.id.data))
	return *id, err
}

// ErrAborted is the error of what a group did when Abort came.
var ErrAborted = errors.New("cuda: the devices' common work was aborted")

// Comm is a device's membership in a group of devices.
type Comm struct {
	lib     *NCCL
	device  int
	mu      sync.Mutex // held by calls and when the handle goes
	handle  handle
	made    handle // NCCL may write it until the initialisation is done
	aborted atomic.Bool
}

// Join makes the device member rank of a group of ranks devices. It waits until all of them are there:
// each of them joins from a goroutine of its own. made is called with the new member before the waiting,
// which Abort ends.
func (t *Thread) Join(lib *NCCL, id CommID, rank, ranks int, made func(*Comm)) error {
	c := &Comm{lib: lib, device: t.device.Ordinal}
	made(c)
	config := &ncclConfig{size: uint64(unsafe.Sizeof(ncclConfig{})), magic: ncclMagic, version: 21400, blocking: 0}
	h, v := &c.made, &id.id
	return c.call("ncclCommInitRank", func() int32 {
		defer func() { c.handle = *h }()
		if lib.api.InitByList != nil {
			return lib.api.InitByList(h, int32(ranks), int32(rank), 1, v, config)
		}
		return lib.api.Init(h, int32(ranks), *v, int32(rank), config)
	})
}

// call makes a call and waits until the library has carried it out or Abort comes. What the library
// then does on the device goes on.
func (c *Comm) call(name string, f func() int32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aborted.Load() {
		return ErrAborted
	}
	result := new(int32)
	*result = f()
	for wait := time.Microsecond; *result == ncclInProgress; wait = min(2*wait, time.Millisecond) {
		c.mu.Unlock() // Abort may come in between
		<-time.After(wait)
		c.mu.Lock()
		if c.aborted.Load() {
			return ErrAborted
		}
		if r := c.lib.api.AsyncError(c.handle, result); r != 0 {
			*result = r
		}
	}
	return c.lib.check(name, c.device, c.handle, *result)
}

// AllReduce queues on the stream of t, which is of the member's device, the sum of the members'
// float32 numbers at p, in place. All of them have to queue the same.
func (c *Comm) AllReduce(t *Thread, p Ptr, count int) error { return c.sum(t, p, count, ncclFloat32) }

// AllReduceF64 is AllReduce of float64.
func (c *Comm) AllReduceF64(t *Thread, p Ptr, count int) error {
	return c.sum(t, p, count, ncclFloat64)
}

func (c *Comm) sum(t *Thread, p Ptr, count int, kind int32) error {
	if count < 0 {
		return fmt.Errorf("cuda: a sum of %d numbers", count)
	}
	if count == 0 {
		return nil
	}
	return c.call("ncclAllReduce", func() int32 {
		return c.lib.api.AllReduce(p, p, uint64(count), kind, ncclSum, c.handle, t.stream)
	})
}

// Err is a failure of the network or of another member that has been noticed; nil: none.
func (c *Comm) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aborted.Load() {
		return ErrAborted
	}
	result := new(int32)
	if r := c.lib.api.AsyncError(c.handle, result); r != 0 {
		*result = r
	}
	if *result == ncclInProgress {
		return nil
	}
	return c.lib.check("ncclCommGetAsyncError", c.device, c.handle, *result)
}

// Abort ends what the member waits for, on the device too, and its membership. It is for any
// goroutine, and may be called twice. Results of what was queued are undefined.
func (c *Comm) Abort() {
	c.aborted.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handle != 0 {
		c.lib.api.Abort(c.handle)
		c.handle = 0
	}
}

// Close ends the membership when the stream's work is done, of all members at the same time. It is
// called on the device's thread; after Abort it does nothing.
func (c *Comm) Close() error {
	if c.aborted.Load() {
		return nil
	}
	var err error
	if c.lib.api.Finalize != nil {
		err = c.call("ncclCommFinalize", func() int32 { return c.lib.api.Finalize(c.handle) })
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aborted.Swap(true) || c.handle == 0 {
		return err
	}
	result := c.lib.api.Destroy(c.handle)
	if result == ncclInProgress { // it goes on by itself: the handle is gone
		result = 0
	}
	c.handle = 0
	return errors.Join(err, c.lib.check("ncclCommDestroy", c.device, 0, result))
}
