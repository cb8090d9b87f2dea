// Kernels that begin before the one in front of them ends (programmatic dependent launch).
#pragma once
#include "common.cuh"

#ifdef __CUDACC_RTC__

// nc_let_next allows the kernel behind this one to begin once all blocks are here or have ended.
NC_DEVICE void nc_let_next()
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// nc_after_previous waits until the kernel in front of this one has ended and its writes are
// there. A kernel that may begin early calls it in every thread, and before that reads only what no
// kernel writes, and writes nothing: then all kernels before have ended as well.
NC_DEVICE void nc_after_previous()
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#else

NC_DEVICE void nc_let_next() {}
NC_DEVICE void nc_after_previous() {}

#endif
