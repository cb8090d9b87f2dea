//go:build !linux

package numa

import (
	"fmt"
	"runtime"
)

// Affinity lists the CPUs the calling thread may run on, ascending. It is empty
// if the system does not say.
func Affinity() []int { return nil }

// SetAffinity restricts the calling thread to cpus. This system cannot.
func SetAffinity(cpus []int) error {
	return fmt.Errorf("numa: restrict thread to CPUs %v: not possible on %s", cpus, runtime.GOOS)
}

// PinThread locks the calling goroutine to its thread and the thread to one
// CPU. This system cannot.
func PinThread(cpu int) error { return SetAffinity([]int{cpu}) }

// A Mask is a saved set of CPUs; see Bind.
type Mask struct{}

// Bind is PinThread for a while. This system cannot.
func Bind(cpu int) (Mask, error) { return Mask{}, PinThread(cpu) }

// Unbind undoes Bind.
func Unbind(Mask) {}

const maxCPU = 1024

// CurrentCPU is the CPU the calling thread runs on now, or -1.
func CurrentCPU() int { return -1 }
