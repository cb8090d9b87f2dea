// The CUDA of common.cuh on a processor, for tests: the threads of a block are fibers of
// one thread, which switch at barriers only.
//
// A kernel becomes a function NAME_host(grid, block, shared, args, size) that returns 0, or
// a text that says what is wrong: barriers that not all threads reach, an argument of
// another size. The order in which threads run between barriers is random, by NC_SEED of
// the environment and the block, so that missing barriers show; static shared memory is filled with
// bytes 0xA5 before each block.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

struct nc_dim {
	unsigned x, y, z;
};

struct uint4 {
	uint32_t x, y, z, w;
};

#define NC_DEVICE static inline
#define NC_SHARED static __attribute__((section("nc_shared")))
#define NC_DYNAMIC(T, name) T *name = (T *)nc_host::dynamic
#define __syncthreads() nc_host::sync(nc_host::AtBlock)
#define __syncwarp() nc_host::sync(nc_host::AtWarp)

extern char __start_nc_shared[] __attribute__((weak));
extern char __stop_nc_shared[] __attribute__((weak));

// nc_switch keeps the registers that a call preserves on the stack, writes the stack's
// pointer to *from, and goes on with the registers on the stack `to`.
extern "C" __attribute__((visibility("hidden"))) void nc_switch(void **from, void *to);

#if defined(__x86_64__)
#define NC_SAVED 6 // registers that nc_switch keeps, then the address to go on at
#define NC_RETURN 6
asm(R"(
.text
.hidden nc_switch
nc_switch:
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	ret
)");
#elif defined(__aarch64__)
#define NC_SAVED 19
#define NC_RETURN 11 // x30
asm(R"(
.text
.hidden nc_switch
nc_switch:
	sub sp, sp, #160
	stp x19, x20, [sp]
	stp x21, x22, [sp, #16]
	stp x23, x24, [sp, #32]
	stp x25, x26, [sp, #48]
	stp x27, x28, [sp, #64]
	stp x29, x30, [sp, #80]
	stp d8, d9, [sp, #96]
	stp d10, d11, [sp, #112]
	stp d12, d13, [sp, #128]
	stp d14, d15, [sp, #144]
	mov x9, sp
	str x9, [x0]
	mov sp, x1
	ldp x19, x20, [sp]
	ldp x21, x22, [sp, #16]
	ldp x23, x24, [sp, #32]
	ldp x25, x26, [sp, #48]
	ldp x27, x28, [sp, #64]
	ldp x29, x30, [sp, #80]
	ldp d8, d9, [sp, #96]
	ldp d10, d11, [sp, #112]
	ldp d12, d13, [sp, #128]
	ldp d14, d15, [sp, #144]
	add sp, sp, #160
	ret
)");
#else
#error "host.h has no nc_switch for this processor"
#endif

namespace nc_host
{

enum State { Ready, Yielded, AtWarp, AtBlock, Done };
enum { MaxThreads = 1024, StackBytes = 64 << 10 };

struct Fiber {
	void *stack; // where it waits; null: it has not begun
	nc_dim thread;
	State state;
	unsigned exchanges; // so far, in this block
};

// Warp counts the fibers of a warp, and those that wait or are done.
struct Warp {
	unsigned size, at_warp, at_block, done;
};

static Fiber fibers[MaxThreads];
static Warp warps[MaxThreads / 32];
static unsigned threads, progress; // of the block; counts what is not a yield
static void *scheduler;
static Fiber *current;
static nc_dim block_index, block_size, grid_size;
static void (*body)(const void *);
static const void *argument;
static uint64_t random_state;
static char *dynamic;
static size_t dynamic_bytes;

static inline unsigned random(unsigned n)
{
	random_state ^= random_state << 13, random_state ^= random_state >> 7,
		random_state ^= random_state << 17;
	return (unsigned)(random_state >> 32) % n;
}

static inline unsigned flat() { return (unsigned)(current - fibers); }
static inline unsigned warp() { return flat() / 32; }
static inline unsigned lane() { return flat() % 32; }

static inline void wait(State s)
{
	current->state = s;
	progress++;
	nc_switch(&current->stack, scheduler);
}

static inline void sync(State s)
{
	Warp &w = warps[warp()];
	(s == AtWarp ? w.at_warp : w.at_block)++;
	wait(s);
}

// exchange shows every thread of a warp what the others bring: element l is lane l's. It is there
// until the thread's next exchange. All 32 threads have to come.
template <class T> static inline const T *exchange(const T &mine)
{
	static T slots[2][MaxThreads / 32][32]; // the threads that are ahead write the other half
	T *all = slots[current->exchanges++ & 1][warp()];
	all[lane()] = mine;
	sync(AtWarp);
	return all;
}

// yield lets other threads go on: for loops that wait for something that another thread writes,
// without a barrier.
static inline void yield()
{
	current->state = Yielded;
	nc_switch(&current->stack, scheduler);
}

// enter is a fiber: one thread of one block after the other.
static inline void enter()
{
	for (;;) {
		body(argument);
		warps[warp()].done++;
		wait(Done);
	}
}

// begin gives a fiber a stack on which nc_switch finds its beginning. Stacks are a little more
// than a power of two apart, so that their ends do not share the lines of a cache.
static inline bool begin(Fiber &f)
{
	static char *stacks;
	const size_t stride = StackBytes + 5 * 64;
	if (!stacks) {
		void *p = mmap(nullptr, stride * MaxThreads, PROT_READ | PROT_WRITE,
		               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p == MAP_FAILED)
			return false;
		stacks = (char *)p;
	}
	void **top = (void **)(stacks + stride * (size_t)(&f - fibers + 1)) - 2;
	*--top = nullptr; // with the address to go on at, what a call leaves on the stack
	top -= NC_SAVED + (NC_SAVED == NC_RETURN);
	memset(top, 0, (NC_SAVED + 1) * sizeof *top);
	top[NC_RETURN] = (void *)enter;
	f.stack = top;
	return true;
}

// run_warp runs the fibers of a warp until none can go on.
static inline void run_warp(Warp &w)
{
	Fiber *f = fibers + 32 * (&w - warps);
	for (;;) {
		unsigned start = random(w.size);
		for (unsigned i = 0, l = start; i < w.size; i++, l = l + 1 == w.size ? 0 : l + 1) {
			if (f[l].state != Ready)
				continue;
			current = f + l;
			nc_switch(&scheduler, f[l].stack);
		}
		if (w.at_warp == 0 || w.at_warp + w.done != w.size)
			return;
		w.at_warp = 0;
		for (unsigned l = 0; l < w.size; l++)
			if (f[l].state == AtWarp)
				f[l].state = Ready;
	}
}

// run_block returns whether every thread came to its end.
static inline bool run_block()
{
	memset(dynamic, 0xA5, dynamic_bytes);
	if (__start_nc_shared)
		memset(__start_nc_shared, 0xA5, (size_t)(__stop_nc_shared - __start_nc_shared));
	const unsigned n = threads, count = (n + 31) / 32;
	for (unsigned i = 0; i < count; i++)
		warps[i] = {n - 32 * i < 32 ? n - 32 * i : 32, 0, 0, 0};
	for (unsigned i = 0; i < n; i++)
		fibers[i].state = Ready, fibers[i].exchanges = 0;
	for (unsigned idle = 0; idle < 1000;) {
		const unsigned before = progress;
		for (unsigned i = 0, w = random(count); i < count; i++, w = w + 1 == count ? 0 : w + 1)
			run_warp(warps[w]);
		unsigned at_block = 0, done = 0;
		bool yielded = false;
		for (unsigned w = 0; w < count; w++)
			at_block += warps[w].at_block, done += warps[w].done;
		if (done == n)
			return true;
		const bool release = at_block > 0 && at_block + done == n;
		for (unsigned w = 0; release && w < count; w++)
			warps[w].at_block = 0;
		for (unsigned i = 0; i < n; i++) {
			yielded |= fibers[i].state == Yielded;
			if (fibers[i].state == Yielded || (release && fibers[i].state == AtBlock))
				fibers[i].state = Ready;
		}
		if (!release && !yielded)
			return false;
		idle = progress == before ? idle + 1 : 0;
	}
	return false;
}

static inline const char *launch(const unsigned grid[3], const unsigned block[3], unsigned shared,
                                 const void *args)
{
	grid_size = {grid[0], grid[1], grid[2]};
	block_size = {block[0], block[1], block[2]};
	argument = args;
	const uint64_t n = (uint64_t)block[0] * block[1] * block[2];
	if (n == 0 || n > MaxThreads || grid[0] == 0 || grid[1] == 0 || grid[2] == 0 ||
	    grid[1] > 65535 || grid[2] > 65535)
		return "the shape of the launch is not one that a GPU has";
	threads = (unsigned)n;
	dynamic_bytes = ((size_t)shared + 1023) / 1024 * 1024;
	static size_t room;
	if (dynamic_bytes > room || !dynamic) {
		free(dynamic);
		room = dynamic_bytes + 1024;
		dynamic = (char *)aligned_alloc(1024, room);
	}
	for (unsigned i = 0; i < n; i++) {
		Fiber &f = fibers[i];
		f.thread = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
		if (!f.stack && !begin(f)) // otherwise it waits for its next thread
			return "no memory for the stacks of a block's threads";
	}
	const char *seed = getenv("NC_SEED");
	for (unsigned z = 0; z < grid[2]; z++)
		for (unsigned y = 0; y < grid[1]; y++)
			for (unsigned x = 0; x < grid[0]; x++) {
				block_index = {x, y, z};
				random_state =
					0x9E3779B97F4A7C15u * (1 + x + 8191ull * y + 524287ull * z +
					                       (seed ? strtoull(seed, nullptr, 10) << 32 : 0));
				if (run_block())
					continue;
				for (Fiber &f : fibers)
					f.stack = nullptr; // some are in the middle of the kernel
				return "some threads of a block wait at a barrier that others do not reach";
			}
	return nullptr;
}

} // namespace nc_host

#define threadIdx (nc_host::current->thread)
#define blockIdx (nc_host::block_index)
#define blockDim (nc_host::block_size)
#define gridDim (nc_host::grid_size)

#define NC_KERNEL(name, Args)                                                               \
	static void name##_body(const Args &a);                                                 \
	static void name##_enter(const void *args) { name##_body(*(const Args *)args); }        \
	extern "C" __attribute__((visibility("default"))) const char *name##_host(              \
		const unsigned grid[3], const unsigned block[3], unsigned shared, const void *args, \
		size_t size)                                                                        \
	{                                                                                       \
		if (size != sizeof(Args))                                                           \
			return "the argument of " #name " has another size";                            \
		nc_host::body = name##_enter;                                                       \
		return nc_host::launch(grid, block, shared, args);                                  \
	}                                                                                       \
	static void name##_body(const Args &a)

template <class T> NC_DEVICE T nc_shuffle(T v, int from) { return nc_host::exchange(v)[from & 31]; }
template <class T> NC_DEVICE T nc_shuffle_xor(T v, int mask)
{
	return nc_shuffle(v, (int)nc_host::lane() ^ mask);
}

NC_DEVICE float nc_half(uint16_t h)
{
	uint32_t u = (uint32_t)(h & 0x7fff) << 13;
	float f;
	memcpy(&f, &u, sizeof f);
	f *= 0x1p112f; // the difference of the exponents' biases; exact
	if (u >= 0x0f800000)
		f = u > 0x0f800000 ? NAN : INFINITY;
	return h >> 15 ? -f : f;
}

NC_DEVICE uint16_t nc_to_half(float f)
{
	uint32_t u;
	memcpy(&u, &f, sizeof u);
	uint32_t sign = u >> 16 & 0x8000, top = u & 0x7fffffff;
	if (top > 0x7f800000)
		return (uint16_t)(sign | 0x7fff);
	if (top >= 0x477ff000)
		return (uint16_t)(sign | 0x7c00); // 65520 and more
	float m;
	memcpy(&m, &top, sizeof m);
	if (top < 0x38800000)
		return (uint16_t)(sign | (uint32_t)nearbyintf(m * 0x1p24f)); // subnormal
	uint32_t r = top + 0xfff + (top >> 13 & 1);
	return (uint16_t)(sign | ((r >> 13) - (112 << 10)));
}

NC_DEVICE int nc_dot(uint32_t a, uint32_t b, int c)
{
	for (int i = 0; i < 32; i += 8)
		c += (int)(a >> i & 255) * (int8_t)(b >> i);
	return c;
}

NC_DEVICE int nc_dot_signed(uint32_t a, uint32_t b, int c)
{
	for (int i = 0; i < 32; i += 8)
		c += (int)(int8_t)(a >> i) * (int8_t)(b >> i);
	return c;
}

NC_DEVICE void nc_mma(int d[4], const uint32_t a[4], const uint32_t b[2])
{
	struct Operands {
		uint32_t a[4], b[2];
	};
	const Operands *all = nc_host::exchange(Operands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
	const unsigned g = nc_host::lane() / 4, t = nc_host::lane() % 4;
	for (unsigned k = 0; k < 4; k++) { // lane 4·row + k holds columns 4k..4k+3 of the row
		const uint32_t *A = all[4 * g + k].a;
		for (unsigned n = 0; n < 2; n++) {
			const uint32_t *B = all[4 * (2 * t + n) + k].b;
			d[n] = nc_dot(A[2], B[1], nc_dot(A[0], B[0], d[n]));
			d[2 + n] = nc_dot(A[3], B[1], nc_dot(A[1], B[0], d[2 + n]));
		}
	}
}

NC_DEVICE float __uint_as_float(uint32_t u)
{
	float f;
	memcpy(&f, &u, sizeof f);
	return f;
}
NC_DEVICE uint32_t __float_as_uint(float f)
{
	uint32_t u;
	memcpy(&u, &f, sizeof u);
	return u;
}
NC_DEVICE int nc_round(float f) { return (int)nearbyintf(f); }

// Fibers switch at barriers only, so nothing comes between.
NC_DEVICE int atomicAdd(int *p, int v)
{
	int old = *p;
	*p = old + v;
	return old;
}
