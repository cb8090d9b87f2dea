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
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

struct nc_dim {
	unsigned x, y, z;
};

struct uint4 {
	uint32_t x, y, z, w;
};

#define NC_DEVICE static inline
#define NC_SHARED static __attribute__((section("nc_shared")))
#define NC_DYNAMIC(T, name) T *name = (T *)nc_host::dynamic.data()
#define __syncthreads() nc_host::sync(nc_host::AtBlock)
#define __syncwarp() nc_host::sync(nc_host::AtWarp)

extern char __start_nc_shared[] __attribute__((weak));
extern char __stop_nc_shared[] __attribute__((weak));

namespace nc_host
{

enum State { Ready, AtWarp, AtBlock, Done };

struct Fiber {
	ucontext_t context; // to enter it
	jmp_buf place;      // where it waits, once it was entered
	bool entered;
	std::vector<char> stack;
	nc_dim thread;
	State state;
};

static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static Fiber *current;
static nc_dim block_index, block_size, grid_size;
static uint64_t slots[32][32]; // [warp][lane], for shuffles and products
static void (*body)(const void *);
static const void *argument;
static uint64_t random_state;
static std::vector<uint4> dynamic;

static inline unsigned random(unsigned n)
{
	random_state ^= random_state << 13, random_state ^= random_state >> 7,
		random_state ^= random_state << 17;
	return (unsigned)(random_state % n);
}

static inline unsigned flat()
{
	return current->thread.x +
	       block_size.x * (current->thread.y + block_size.y * current->thread.z);
}
static inline unsigned warp() { return flat() / 32; }
static inline unsigned lane() { return flat() % 32; }

// suspend goes back to resume. Unlike swapcontext these jumps make no system call.
static __attribute__((noinline)) void suspend()
{
	if (_setjmp(current->place) == 0)
		_longjmp(scheduler, 1);
}

static __attribute__((noinline)) void resume(Fiber *f)
{
	current = f;
	if (_setjmp(scheduler) != 0)
		return;
	if (f->entered)
		_longjmp(f->place, 1);
	f->entered = true;
	setcontext(&f->context);
}

static inline void sync(State s)
{
	current->state = s;
	suspend();
}

// enter is a fiber: one thread of one block after the other.
static inline void enter()
{
	for (;;) {
		body(argument);
		sync(Done);
	}
}

// release lets the fibers first .. last go on if all of them wait in state s.
static inline bool release(size_t first, size_t last, State s)
{
	size_t waiting = 0;
	for (size_t i = first; i < last; i++) {
		waiting += fibers[i].state == s;
		if (fibers[i].state != s && fibers[i].state != Done)
			return false;
	}
	for (size_t i = first; i < last; i++)
		if (fibers[i].state == s)
			fibers[i].state = Ready;
	return waiting > 0;
}

// run_block returns whether every thread came to its end.
static inline bool run_block()
{
	if (!dynamic.empty())
		memset(dynamic.data(), 0xA5, dynamic.size() * sizeof dynamic[0]);
	if (__start_nc_shared)
		memset(__start_nc_shared, 0xA5, (size_t)(__stop_nc_shared - __start_nc_shared));
	size_t n = fibers.size();
	for (size_t i = 0; i < n; i++) {
		Fiber &f = fibers[i];
		f.thread = {(unsigned)(i % block_size.x), (unsigned)(i / block_size.x % block_size.y),
		            (unsigned)(i / block_size.x / block_size.y)};
		f.state = Ready;
	}
	for (;;) {
		bool ran = false;
		size_t start = random((unsigned)n);
		for (size_t i = 0; i < n; i++) {
			Fiber &f = fibers[(start + i) % n];
			if (f.state != Ready)
				continue;
			resume(&f);
			ran = true;
		}
		bool released = release(0, n, AtBlock);
		for (size_t w = 0; w < n; w += 32)
			released |= release(w, w + 32 < n ? w + 32 : n, AtWarp);
		if (released || ran)
			continue;
		for (Fiber &f : fibers)
			if (f.state != Done)
				return false;
		return true;
	}
}

static inline const char *launch(const unsigned grid[3], const unsigned block[3], unsigned shared,
                                 const void *args)
{
	grid_size = {grid[0], grid[1], grid[2]};
	block_size = {block[0], block[1], block[2]};
	argument = args;
	size_t n = (size_t)block[0] * block[1] * block[2];
	if (n == 0 || n > 1024 || grid[0] == 0 || grid[1] == 0 || grid[2] == 0)
		return "the shape of the launch is not one that a GPU has";
	fibers.resize(n);
	dynamic.resize((shared + 15) / 16);
	for (Fiber &f : fibers) {
		if (f.entered)
			continue; // it waits for its next thread
		f.stack.resize(64 << 10);
		getcontext(&f.context);
		f.context.uc_stack.ss_sp = f.stack.data();
		f.context.uc_stack.ss_size = f.stack.size();
		f.context.uc_link = nullptr;
		makecontext(&f.context, enter, 0);
	}
	const char *seed = getenv("NC_SEED");
	for (unsigned z = 0; z < grid[2]; z++)
		for (unsigned y = 0; y < grid[1]; y++)
			for (unsigned x = 0; x < grid[0]; x++) {
				block_index = {x, y, z};
				random_state =
					0x9E3779B97F4A7C15u *
					(1 + x + 8191ull * y + (seed ? strtoull(seed, nullptr, 10) << 32 : 0));
				if (run_block())
					continue;
				fibers.clear(); // some are in the middle of the kernel
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

template <class T> NC_DEVICE T nc_shuffle(T v, int from)
{
	uint64_t bits = 0;
	memcpy(&bits, &v, sizeof v);
	unsigned w = nc_host::warp();
	nc_host::slots[w][nc_host::lane()] = bits;
	__syncwarp();
	bits = nc_host::slots[w][from & 31];
	__syncwarp();
	memcpy(&v, &bits, sizeof v);
	return v;
}
template <class T> NC_DEVICE T nc_shuffle_xor(T v, int mask)
{
	return nc_shuffle(v, (int)nc_host::lane() ^ mask);
}

NC_DEVICE float nc_half(uint16_t h)
{
	int e = h >> 10 & 31, m = h & 1023;
	float f = e == 0    ? ldexpf((float)m, -24)
	          : e == 31 ? (m ? NAN : INFINITY)
	                    : ldexpf((float)(m | 1024), e - 25);
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
		return (uint16_t)(sign | (uint32_t)nearbyintf(ldexpf(m, 24))); // subnormal
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
	static uint32_t left[32][32][4], right[32][32][2]; // [warp][lane]
	unsigned w = nc_host::warp(), l = nc_host::lane(), g = l / 4, t = l % 4;
	memcpy(left[w][l], a, sizeof left[w][l]);
	memcpy(right[w][l], b, sizeof right[w][l]);
	__syncwarp();
	for (unsigned k = 0; k < 4; k++) { // lane 4·row + k holds columns 4k..4k+3 of the row
		const uint32_t *A = left[w][4 * g + k];
		for (unsigned n = 0; n < 2; n++) {
			const uint32_t *B = right[w][4 * (2 * t + n) + k];
			d[n] = nc_dot(A[2], B[1], nc_dot(A[0], B[0], d[n]));
			d[2 + n] = nc_dot(A[3], B[1], nc_dot(A[1], B[0], d[2 + n]));
		}
	}
	__syncwarp();
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
