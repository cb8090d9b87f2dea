package numa

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxCPU is the number of CPUs in an affinity mask of x/sys/unix, and of nodes in ours.
const maxCPU = 1024

// Affinity lists the CPUs the calling thread may run on, ascending. It is empty
// if the system does not say.
func Affinity() []int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil
	}
	cpus := make([]int, 0, set.Count())
	for c := range maxCPU {
		if set.IsSet(c) {
			cpus = append(cpus, c)
		}
	}
	return cpus
}

// SetAffinity restricts the calling thread to cpus. The caller has locked its
// goroutine to the thread.
func SetAffinity(cpus []int) error {
	var set unix.CPUSet
	for _, c := range cpus {
		if c < 0 || c >= maxCPU {
			return fmt.Errorf("numa: no CPU %d: an affinity mask holds CPUs 0 to %d", c, maxCPU-1)
		}
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("numa: restrict thread to CPUs %v: %w (allowed: %v)", cpus, err, Affinity())
	}
	return nil
}

// PinThread locks the calling goroutine to its thread and the thread to one
// CPU. The goroutine stays locked until it ends or calls runtime.UnlockOSThread
// after restoring the affinity.
func PinThread(cpu int) error {
	runtime.LockOSThread()
	if err := SetAffinity([]int{cpu}); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	return nil
}

// A Mask is a saved set of CPUs; see Bind.
type Mask struct{ set unix.CPUSet }

// Bind is PinThread for a while: Unbind of the returned mask undoes it.
// It allocates nothing.
func Bind(cpu int) (Mask, error) {
	var old, one Mask
	runtime.LockOSThread()
	one.set.Set(cpu)
	err := unix.SchedGetaffinity(0, &old.set)
	if err == nil {
		err = unix.SchedSetaffinity(0, &one.set)
	}
	if err != nil {
		runtime.UnlockOSThread()
	}
	return old, err
}

// Unbind gives the calling thread the CPUs of before Bind and unlocks the
// goroutine. If the system refuses, the goroutine stays locked, so that no other
// goroutine meets the bound thread.
func Unbind(old Mask) {
	if unix.SchedSetaffinity(0, &old.set) == nil {
		runtime.UnlockOSThread()
	}
}

// CurrentCPU is the CPU the calling thread runs on now, or -1.
func CurrentCPU() int {
	var cpu, node uint32
	_, _, e := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), uintptr(unsafe.Pointer(&node)), 0)
	if e != 0 {
		return -1
	}
	return int(cpu)
}
