// The scene, devices and memory of libcuda.c.
#pragma once
#include <dlfcn.h>
#include <elf.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int32_t result;
enum {
	INVALID_VALUE = 1,
	OUT_OF_MEMORY = 2,
	NOT_INITIALIZED = 3,
	NO_DEVICE = 100,
	INVALID_CONTEXT = 201,
	INVALID_HANDLE = 400,
	NOT_FOUND = 500,
	CAPTURE_UNSUPPORTED = 900,
	CAPTURE_ISOLATION = 905,
	LAUNCH_FAILED = 719,
	ILLEGAL_ADDRESS = 700
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
enum { DEVICES = 16, FIRST = 1000 }; // a context is FIRST + the number of its device
static int initialized, devices, retained, lost[DEVICES];
static uint64_t memory, used[DEVICES];
static char fail_name[64];
static int fail_code, fail_at, fail_count, fail_device;
static __thread uintptr_t current;
static char message[256] = "a failure that the test asked for";

static int64_t env(const char *name, int64_t otherwise)
{
	const char *v = getenv(name);
	return v ? strtoll(v, NULL, 10) : otherwise;
}

// injected is the code that this call is to fail with.
static result injected(const char *name)
{
	result r = 0;
	pthread_mutex_lock(&lock);
	if (strcmp(name, fail_name) == 0 &&
	    (fail_device < 0 || current == (uintptr_t)(FIRST + fail_device)) && ++fail_count >= fail_at)
		r = fail_code;
	pthread_mutex_unlock(&lock);
	return r;
}

#define CALL                            \
	do {                                \
		if (!initialized)               \
			return NOT_INITIALIZED;     \
		result r_ = injected(__func__); \
		if (r_)                         \
			return r_;                  \
	} while (0)
#define IN_CONTEXT                  \
	do {                            \
		CALL;                       \
		if (!current)               \
			return INVALID_CONTEXT; \
	} while (0)
#define USABLE                            \
	do {                                  \
		IN_CONTEXT;                       \
		if (lost[current - FIRST])        \
			return lost[current - FIRST]; \
	} while (0)

result cuInit(unsigned flags)
{
	if (flags)
		return INVALID_VALUE;
	devices = (int)env("FAKE_CUDA_DEVICES", 1);
	memory = (uint64_t)env("FAKE_CUDA_MEMORY", 1 << 30);
	fail_name[0] = 0, fail_count = 0, fail_device = -1;
	if (getenv("FAKE_CUDA_FAIL"))
		sscanf(getenv("FAKE_CUDA_FAIL"), "%63[^:]:%d:%d@%d", fail_name, &fail_code, &fail_at,
		       &fail_device);
	if (devices < 0 || devices > DEVICES)
		return INVALID_VALUE;
	if (devices == 0)
		return NO_DEVICE;
	initialized = 1;
	return injected(__func__);
}
result cuDriverGetVersion(int *v)
{
	*v = (int)env("FAKE_CUDA_VERSION", 13000);
	return 0;
}
result cuGetErrorName(result r, const char **name)
{
	static __thread char text[32];
	snprintf(text, sizeof text, "CUDA_ERROR_%d", r);
	*name = text;
	return 0;
}
result cuGetErrorString(result r, const char **text)
{
	(void)r;
	*text = message;
	return 0;
}
result cuDeviceGetCount(int *n)
{
	CALL;
	*n = devices;
	return 0;
}
result cuDeviceGet(int *d, int ordinal)
{
	CALL;
	if (ordinal < 0 || ordinal >= devices)
		return 101;
	*d = FIRST + ordinal;
	return 0;
}
result cuDeviceGetName(char *name, int n, int d)
{
	CALL;
	snprintf(name, (size_t)n, "Emulated GPU %d", d - FIRST);
	return 0;
}
result cuDeviceGetAttribute(int *v, int attribute, int d)
{
	CALL;
	(void)d;
	switch (attribute) {
	case 75:
		*v = (int)env("FAKE_CUDA_MAJOR", 9);
		break;
	case 76:
		*v = 0;
		break;
	case 16:
		*v = 132;
		break;
	case 13:
		*v = 1980000;
		break;
	case 97:
		*v = 227 << 10;
		break;
	default:
		*v = 1;
		break;
	}
	return 0;
}
result cuDeviceTotalMem_v2(uint64_t *n, int d)
{
	CALL;
	(void)d;
	*n = memory;
	return 0;
}
result cuDevicePrimaryCtxRetain(uintptr_t *ctx, int d)
{
	CALL;
	__sync_fetch_and_add(&retained, 1);
	*ctx = (uintptr_t)d;
	return 0;
}
result cuDevicePrimaryCtxRelease_v2(int d)
{
	CALL;
	__sync_fetch_and_sub(&retained, 1);
	lost[d - FIRST] = 0;
	current = 0;
	return 0;
}
result cuCtxSetCurrent(uintptr_t ctx)
{
	CALL;
	current = ctx;
	return 0;
}
static void drain(int device);

result cuCtxSynchronize(void)
{
	USABLE;
	drain((int)(current - FIRST));
	return lost[current - FIRST];
}

// ------------------------------------------------------------------- memory

struct area {
	char *at;
	uint64_t bytes;
	int host, device;
	struct area *next;
};
static struct area *areas;

// On both sides of an area is a fence that nobody may write.
enum { FENCE = 256, FENCED = 0x3C };

static int whole(const struct area *a)
{
	for (int i = 0; i < FENCE; i++)
		if (a->at[i - FENCE] != FENCED || a->at[a->bytes + (uint64_t)i] != FENCED)
			return 0;
	return 1;
}

// fences is what kernels of a device that write beside its memory get for it, sooner or later.
static result fences(int device)
{
	result r = 0;
	pthread_mutex_lock(&lock);
	for (struct area *a = areas; a && !r; a = a->next)
		if (a->device == device && !whole(a)) {
			snprintf(message, sizeof message, "something wrote beside an area of %llu bytes",
			         (unsigned long long)a->bytes);
			r = ILLEGAL_ADDRESS;
		}
	pthread_mutex_unlock(&lock);
	return r;
}

static result take(void **p, uint64_t bytes, int host)
{
	if (bytes == 0)
		return INVALID_VALUE;
	pthread_mutex_lock(&lock);
	result r = OUT_OF_MEMORY;
	const int device = (int)(current - FIRST);
	if (host || used[device] + bytes <= memory) {
		struct area *a = malloc(sizeof *a);
		a->at = (char *)aligned_alloc(256, (bytes + 255) / 256 * 256 + 2 * FENCE) + FENCE;
		memset(a->at, 0xA5, bytes);
		memset(a->at - FENCE, FENCED, FENCE);
		memset(a->at + bytes, FENCED, FENCE);
		a->bytes = bytes, a->host = host, a->device = device, a->next = areas, areas = a;
		used[device] += host ? 0 : bytes;
		*p = a->at;
		r = 0;
	}
	pthread_mutex_unlock(&lock);
	return r;
}
static result give(void *p, int host)
{
	result r = INVALID_VALUE;
	pthread_mutex_lock(&lock);
	for (struct area **a = &areas; *a; a = &(*a)->next) {
		if ((*a)->at != p || (*a)->host != host || (*a)->device != (int)(current - FIRST))
			continue;
		struct area *gone = *a;
		*a = gone->next;
		used[gone->device] -= host ? 0 : gone->bytes;
		free(gone->at - FENCE);
		free(gone);
		r = 0;
		break;
	}
	pthread_mutex_unlock(&lock);
	return r;
}
// holds says whether memory of the current device, or of the host, holds these bytes.
static int holds(uint64_t p, uint64_t bytes, int host)
{
	int found = 0;
	pthread_mutex_lock(&lock);
	for (struct area *a = areas; a; a = a->next)
		found |= a->host == host && (host || a->device == (int)(current - FIRST)) &&
		         p >= (uintptr_t)a->at && p - (uintptr_t)a->at <= a->bytes &&
		         bytes <= a->bytes - (p - (uintptr_t)a->at);
	pthread_mutex_unlock(&lock);
	return found;
}
static int inside(uint64_t p, uint64_t bytes) { return holds(p, bytes, 0); }

// fake_cuda_inside is inside, for other emulated libraries.
int fake_cuda_inside(uint64_t p, uint64_t bytes) { return current && inside(p, bytes); }

result cuMemGetInfo_v2(uint64_t *available, uint64_t *total)
{
	IN_CONTEXT;
	*available = memory - used[current - FIRST], *total = memory;
	return 0;
}
result cuMemAlloc_v2(void **p, uint64_t bytes)
{
	USABLE;
	return take(p, bytes, 0);
}
result cuMemFree_v2(void *p)
{
	IN_CONTEXT;
	drain((int)(current - FIRST));
	return give(p, 0);
}
result cuMemHostAlloc(void **p, uint64_t bytes, unsigned flags)
{
	IN_CONTEXT;
	(void)flags;
	return take(p, bytes, 1);
}
result cuMemFreeHost(void *p)
{
	IN_CONTEXT;
	drain((int)(current - FIRST));
	return give(p, 1);
}
// fake_cuda_left is the areas that were not freed and contexts that were not released.
int fake_cuda_left(void)
{
	int n = retained;
	for (struct area *a = areas; a; a = a->next)
		n++;
	return n;
}

// cuTensorMapEncodeTiled writes what nc_tensor of hopperhost.h reads: matrices of bytes only.
result cuTensorMapEncodeTiled(void *map, int kind, unsigned rank, uint64_t at, const uint64_t *dims,
                              const uint64_t *strides, const unsigned *box, const unsigned *steps,
                              int interleave, int swizzle, int promotion, int fill)
{
	IN_CONTEXT;
	(void)promotion;
	const int wide = swizzle == 3 ? 128 : 256;
	if ((uintptr_t)map % 64 || kind != 0 || rank != 2 || at % 16 || strides[0] % 16 ||
	    strides[0] < dims[0] || box[0] == 0 || box[0] % 16 || (int)box[0] > wide || box[1] == 0 ||
	    box[1] > 256 || steps[0] != 1 || steps[1] != 1 || interleave != 0 ||
	    (swizzle != 0 && swizzle != 3) || fill != 0 || dims[0] == 0 || dims[1] == 0 ||
	    dims[0] > 1ull << 32 || dims[1] > 1ull << 32)
		return INVALID_VALUE;
	if (!inside(at, (dims[1] - 1) * strides[0] + dims[0]))
		return ILLEGAL_ADDRESS;
	struct {
		uint64_t at, columns, rows, stride;
		unsigned width, height, swizzle, magic;
	} m = {at, dims[0], dims[1], strides[0], box[0], box[1], (unsigned)swizzle, 0x6d6170};
	memset(map, 0, 128);
	memcpy(map, &m, sizeof m);
	return 0;
}
