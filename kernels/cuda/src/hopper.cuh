// What GPUs of compute capability 9.0 (sm_90a) have beyond those before: barriers in shared
// memory that count bytes, copies into it by the memory's own engine, and products of four
// warps that run beside the computation. The names and the layouts are PTX's.
//
// On the host, copies are carried out late and in random order, and products when they are
// waited for: until then their results hold 0xA5A5A5A5, and their factors are not yet read.
#pragma once
#include "method.cuh"
#include "mma.cuh"

// nc_map describes a matrix to the copying engine: what cuTensorMapEncodeTiled writes.
struct alignas(64) nc_map {
	uint64_t opaque[16];
};

// nc_descriptor is the right factor of nc_wgmma at an address in shared memory: columns of 128
// bytes along k, one after the other, eight of them (1024 bytes) aligned to their size, the 16-byte
// parts of column c exchanged by XOR with c%8. Bits 0-13 are the address, 16-29 the leading
// offset, which this layout ignores, 32-45 the distance of eight columns, all in units of 16
// bytes; 49-51 are 0 because of the alignment; 62-63 name the layout. Addresses 32 bytes
// on are those of k 32 on.
NC_DEVICE uint64_t nc_descriptor(uint32_t address)
{
	return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
	       (uint64_t)1 << 62;
}

#ifdef __CUDACC_RTC__

// NC_GRID_KERNEL is a kernel of blocks of that many threads, one on a multiprocessor, whose
// argument has an address, for nc_map in it.
#define NC_GRID_KERNEL(name, Args, threads) \
	extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Args a)

NC_DEVICE uint32_t nc_address(nc_place p) { return p; }

// A barrier is 8 bytes of shared memory. A phase of it ends when `count` threads have arrived and
// the bytes that they expect have come; the phases' parities alternate from 0.
NC_DEVICE void nc_barrier(nc_place b, int count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b), "r"(count) : "memory");
}
// nc_barriers shows the engine the barriers that the thread has made; a __syncthreads shows them to
// the block.
NC_DEVICE void nc_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
NC_DEVICE void nc_arrive(nc_place b)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b) : "memory");
}
// nc_expect arrives, and announces bytes.
NC_DEVICE void nc_expect(nc_place b, int bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(bytes)
	             : "memory");
}
// nc_passed says whether the phase of that parity has ended; it may wait a little for it.
NC_DEVICE bool nc_passed(nc_place b, uint32_t parity)
{
	uint32_t passed;
	asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
	             "selp.u32 %0, 1, 0, p; }"
	             : "=r"(passed)
	             : "r"(b), "r"(parity)
	             : "memory");
	return passed != 0;
}
// nc_clock counts cycles; nc_patience is those of some seconds.
NC_DEVICE int64_t nc_clock()
{
	int64_t c;
	asm volatile("mov.u64 %0, %%clock64;" : "=l"(c));
	return c;
}
enum : int64_t { nc_patience = 1ll << 33 };
NC_DEVICE void nc_trap() { asm volatile("trap;"); }

// nc_tensor copies the box of a map that begins at byte x of row y, and tells the barrier; what is
// outside the matrix becomes 0 and counts as bytes. dst is aligned to 128, and to 1024 where
// the map exchanges parts of columns.
NC_DEVICE void nc_tensor(nc_place dst, const nc_map *map, int x, int y, nc_place b)
{
	asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
	             "[%0], [%1, {%2, %3}], [%4];" ::"r"(dst),
	             "l"(map), "r"(x), "r"(y), "r"(b)
	             : "memory");
}
// nc_prefetch reads a map ahead of its first use.
NC_DEVICE void nc_prefetch(const nc_map *map)
{
	asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// nc_registers_down and _up change the registers of each thread of four warps, which all come; the
// block's have to suffice.
template <int N> NC_DEVICE void nc_registers_down()
{
	asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> NC_DEVICE void nc_registers_up()
{
	asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// nc_wgmma_begin comes between writing registers and products that use them.
NC_DEVICE void nc_wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// nc_wgmma_commit makes a group of the products since the last one.
NC_DEVICE void nc_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// nc_wgmma_await waits for all groups but the last N.
template <int N> NC_DEVICE void nc_wgmma_await()
{
	asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// nc_pin keeps the compiler from moving accesses of r across it.
template <class T> NC_DEVICE void nc_pin(T &r) { asm volatile("" : "+r"(r)::"memory"); }

// nc_wgmma adds the product of A [64][32], unsigned bytes, and B [32][64], signed bytes, to D
// [64][64], when it is waited for. Warp w of the four holds rows 16w to 16w+15 as in nc_mma: a is
// that of A, and d[4n..4n+3] that of columns 8n to 8n+7.
NC_DEVICE void nc_wgmma(int d[32], const uint32_t a[4], uint64_t b)
{
	asm volatile(
		"wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 "
		"{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"
		"%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, 1;"
		: "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
		  "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
		  "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]),
		  "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]),
		  "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31])
		: "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#else
#include "hopperhost.h"
#endif
