// Package cuda is the NVIDIA GPUs of a machine: the driver and the run-time compiler,
// device memory, streams, and the kernels of this engine in CUDA C++.
//
// Nothing of CUDA is needed to build it. libcuda.so.1 comes with a GPU's driver and is
// opened when it is asked for; kernels are compiled for the device that is found by
// libnvrtc, or come from a cache of earlier compilations.
//
// # Threads
//
// A CUDA context belongs to a thread. A Device has one, locked to the context for as
// long as the device is open; Device.Do runs a function on it, and only such a
// function holds the *Thread whose methods talk to the device. Functions of several
// goroutines run one after the other.
//
// The primary context of the device is used, which other libraries in the process
// share.
package cuda
