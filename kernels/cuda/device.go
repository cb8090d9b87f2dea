package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
)

// Info is what a device is.
type Info struct {
	Ordinal int    `json:"ordinal"`
	Name    string `json:"name"`
	// Major and Minor are the compute capability.
	Major int `json:"major"`
	Minor int `json:"minor"`
	// Multiprocessors, their clock in kHz, and the shared memory that one block may ask for.
	Multiprocessors int `json:"multiprocessors"`
	ClockKHz        int `json:"clock_khz"`
	SharedBytes     int `json:"shared_bytes"`
	// Memory in bytes, the width of its bus in bits and its clock in kHz.
	Memory         uint64 `json:"memory"`
	MemoryBusBits  int    `json:"memory_bus_bits"`
	MemoryClockKHz int    `json:"memory_clock_khz"`
	L2Bytes        int    `json:"l2_bytes"`
}

// Arch is the architecture that kernels are compiled for, such as "sm_90a": with the
// features of just this generation where there are such.
func (i Info) Arch() string {
	a := fmt.Sprintf("sm_%d%d", i.Major, i.Minor)
	if i.Major >= 9 {
		a += "a"
	}
	return a
}

// MinCapability is the oldest compute capability that the kernels run on: Ampere's.
const MinCapability = 80

// Numbers of CUdevice_attribute.
const (
	attrMemoryClock = 36
	attrBusWidth    = 37
	attrL2          = 38
	attrClock       = 13
	attrProcessors  = 16
	attrMajor       = 75
	attrMinor       = 76
	attrShared      = 97 // cudaDevAttrMaxSharedMemoryPerBlockOptin
)

// Devices is the devices that this process may use.
func (d *Driver) Devices() ([]Info, error) {
	var n int32
	if err := d.check("cuDeviceGetCount", d.api.DeviceCount(&n)); err != nil {
		return nil, err
	}
	list := make([]Info, 0, n)
	for i := range int(n) {
		info, _, err := d.info(i)
		if err != nil {
			return nil, err
		}
		list = append(list, info)
	}
	return list, nil
}

// Fail makes err what waiting on the device and further calls of Do return, as after a loss: for a
// fault elsewhere that makes the device's results wrong. The first one counts.
func (v *Device) Fail(err error) { _ = v.fail(err) } // it is what Do returns

// fail is Fail; it returns the error that counts.
func (v *Device) fail(err error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.lost == nil {
		v.lost = err
		for _, f := range v.onLoss {
			go tell(f, err)
		}
	}
	return v.lost
}

// OnLoss lets f be called, in a goroutine of its own, when the device is lost or Fail is called.
func (v *Device) OnLoss(f func(error)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.lost != nil {
		go tell(f, v.lost)
	}
	v.onLoss = append(v.onLoss, f)
}

func tell(f func(error), err error) {
	defer func() { _ = recover() }() // it is the listener's fault, and nobody is here to be told
	f(err)
}

// failed is what Fail or a loss left.
func (v *Device) failed() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lost
}

// about is the error of a result, of a call about a device without a context; nil if it is 0.
func (d *Driver) about(call string, ordinal int, c code) error {
	if c == 0 {
		return nil
	}
	return d.checkOn(call, ordinal, c)
}

func (d *Driver) info(ordinal int) (info Info, device int32, err error) {
	info.Ordinal = ordinal
	if err := d.about("cuDeviceGet", ordinal, d.api.DeviceGet(&device, int32(ordinal))); err != nil {
		return info, 0, err
	}
	name := make([]byte, 256)
	if err := d.about("cuDeviceGetName", ordinal, d.api.DeviceName(&name[0], int32(len(name)), device)); err != nil {
		return info, 0, err
	}
	info.Name, _, _ = strings.Cut(string(name), "\x00")
	if err := d.about("cuDeviceTotalMem", ordinal, d.api.DeviceMem(&info.Memory, device)); err != nil {
		return info, 0, err
	}
	for _, a := range []struct {
		attribute int32
		to        *int
	}{
		{attrMajor, &info.Major}, {attrMinor, &info.Minor}, {attrProcessors, &info.Multiprocessors}, {attrClock, &info.ClockKHz},
		{attrShared, &info.SharedBytes}, {attrBusWidth, &info.MemoryBusBits}, {attrMemoryClock, &info.MemoryClockKHz}, {attrL2, &info.L2Bytes},
	} {
		var v int32
		if err := d.about("cuDeviceGetAttribute", ordinal, d.api.DeviceAttr(&v, a.attribute, device)); err != nil {
			return info, 0, err
		}
		*a.to = int(v)
	}
	return info, device, nil
}

// ErrClosed is returned by everything that is used after its Close.
var ErrClosed = errors.New("cuda: the device is closed")

// Device is an open device. It is for any number of goroutines.
type Device struct {
	Info
	driver *Driver
	work   chan func(*Thread)
	stop   chan struct{} // closed by Close
	ended  chan struct{} // closed when the thread has ended

	mu     sync.Mutex
	closed bool
	lost   error // what made the context, or what is in its memory, unusable
	onLoss []func(error)
}

// Open opens a device: it makes or joins the primary context and starts the thread
// that holds it.
func (d *Driver) Open(ordinal int) (*Device, error) {
	info, device, err := d.info(ordinal)
	if err != nil {
		return nil, err
	}
	if have := info.Major*10 + info.Minor; have < MinCapability {
		return nil, &Error{Call: "open", Device: ordinal, Text: fmt.Sprintf("%s has compute capability %d.%d, needed is 8.0 or newer", info.Name, info.Major, info.Minor),
			Hint: "use device = \"cpu\""}
	}
	v := &Device{Info: info, driver: d, work: make(chan func(*Thread)), stop: make(chan struct{}), ended: make(chan struct{})}
	started := make(chan error)
	go v.serve(device, started)
	if err := <-started; err != nil {
		<-v.ended // the context is given back
		return nil, err
	}
	return v, nil
}

// serve is the thread of the device.
func (v *Device) serve(device int32, started chan<- error) {
	defer close(v.ended)
	runtime.LockOSThread() // for good: the thread ends with the goroutine, and the context with it
	t := &Thread{device: v, api: &v.driver.api, sources: map[string]*Module{}}
	err := t.check("cuDevicePrimaryCtxRetain", t.api.Retain(&t.context, device))
	if err == nil {
		defer t.api.Release(device)
		err = t.check("cuCtxSetCurrent", t.api.SetCurrent(t.context))
	}
	if err == nil {
		err = t.check("cuStreamCreate", t.api.StreamCreate(&t.stream, 1)) // not ordered with the default stream of other libraries
	}
	started <- err
	if err != nil {
		return
	}
	defer t.free()
	for {
		select {
		case f := <-v.work:
			f(t)
		case <-v.stop:
			return
		}
	}
}

// Do runs f on the thread of the device and returns its error. The *Thread must not be
// kept. A panic of f is returned as an error.
func (v *Device) Do(f func(*Thread) error) error {
	if err := v.failed(); err != nil {
		return err
	}
	done := make(chan error, 1)
	select {
	case v.work <- func(t *Thread) { guard(t, f, done) }:
		return <-done
	case <-v.ended:
		return ErrClosed
	}
}

// guard sends the error of f(t), with a panic made an error. An f that ends its goroutine, as
// tests do that fail, closes the device.
func guard(t *Thread, f func(*Thread) error, done chan<- error) {
	err := errors.New("cuda: the thread of the device was ended")
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cuda: internal error: %v\n%s", r, debug.Stack())
		}
		done <- err
	}()
	err = f(t)
}

// Close waits for what runs, frees what was allocated on the device and lets go of the
// context. It may be called twice.
func (v *Device) Close() {
	v.mu.Lock()
	if !v.closed {
		v.closed = true
		close(v.stop)
	}
	v.mu.Unlock()
	<-v.ended
}

// lose notes that the context cannot be used any more: further calls of Do return what it does.
func (v *Device) lose(err *Error) error { return v.fail(&LostError{Device: v.Ordinal, Err: err}) }

// check makes an error of a result, and notes the loss of the context.
func (t *Thread) check(call string, c code) error {
	if c == 0 {
		return nil
	}
	err := t.device.driver.checkOn(call, t.device.Ordinal, c)
	if sticky[c] {
		return t.device.lose(err)
	}
	return err
}
