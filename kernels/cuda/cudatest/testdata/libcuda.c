// A libcuda.so.1 for tests: device memory is memory, a module is the path of a shared
// library with host builds of the kernels, and everything is done at once, on the calling
// thread. It checks what a driver takes on trust: that the caller's thread has the context,
// that addresses lie within what was allocated, that nothing is freed twice or leaked.
//
// FAKE_CUDA_DEVICES (default 1), FAKE_CUDA_VERSION, FAKE_CUDA_MEMORY (bytes) and
// FAKE_CUDA_FAIL ("cuMemAlloc_v2:700:3": the third call gives 700) set the scene; they
// are read by cuInit.
#define _GNU_SOURCE
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
	NOT_FOUND = 500,
	LAUNCH_FAILED = 719,
	ILLEGAL_ADDRESS = 700
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int initialized, devices, version, retained;
static uint64_t memory, used;
static char fail_name[64];
static int fail_code, fail_at, fail_count;
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
	if (strcmp(name, fail_name) == 0 && ++fail_count >= fail_at)
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

result cuInit(unsigned flags)
{
	if (flags)
		return INVALID_VALUE;
	devices = (int)env("FAKE_CUDA_DEVICES", 1);
	version = (int)env("FAKE_CUDA_VERSION", 12040);
	memory = (uint64_t)env("FAKE_CUDA_MEMORY", 1 << 30);
	fail_name[0] = 0, fail_count = 0;
	if (getenv("FAKE_CUDA_FAIL"))
		sscanf(getenv("FAKE_CUDA_FAIL"), "%63[^:]:%d:%d", fail_name, &fail_code, &fail_at);
	if (devices == 0)
		return NO_DEVICE;
	initialized = 1;
	return injected(__func__);
}
result cuDriverGetVersion(int *v)
{
	*v = version;
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
	*d = 1000 + ordinal;
	return 0;
}
result cuDeviceGetName(char *name, int n, int d)
{
	CALL;
	snprintf(name, (size_t)n, "Emulated GPU %d", d - 1000);
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
	retained++;
	*ctx = (uintptr_t)d;
	return 0;
}
result cuDevicePrimaryCtxRelease_v2(int d)
{
	CALL;
	(void)d;
	retained--;
	current = 0;
	return 0;
}
result cuCtxSetCurrent(uintptr_t ctx)
{
	CALL;
	current = ctx;
	return 0;
}
result cuCtxSynchronize(void)
{
	IN_CONTEXT;
	return 0;
}

// ------------------------------------------------------------------- memory

struct area {
	char *at;
	uint64_t bytes;
	int host;
	struct area *next;
};
static struct area *areas;

static result take(void **p, uint64_t bytes, int host)
{
	if (bytes == 0)
		return INVALID_VALUE;
	pthread_mutex_lock(&lock);
	result r = OUT_OF_MEMORY;
	if (host || used + bytes <= memory) {
		struct area *a = malloc(sizeof *a);
		a->at = aligned_alloc(256, (bytes + 255) / 256 * 256);
		memset(a->at, 0xA5, bytes);
		a->bytes = bytes, a->host = host, a->next = areas, areas = a;
		used += host ? 0 : bytes;
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
		if ((*a)->at != p || (*a)->host != host)
			continue;
		struct area *gone = *a;
		*a = gone->next;
		used -= host ? 0 : gone->bytes;
		free(gone->at);
		free(gone);
		r = 0;
		break;
	}
	pthread_mutex_unlock(&lock);
	return r;
}
// inside says whether device memory holds these bytes.
static int inside(uint64_t p, uint64_t bytes)
{
	int found = 0;
	pthread_mutex_lock(&lock);
	for (struct area *a = areas; a; a = a->next)
		found |= !a->host && p >= (uintptr_t)a->at && p - (uintptr_t)a->at <= a->bytes &&
		         bytes <= a->bytes - (p - (uintptr_t)a->at);
	pthread_mutex_unlock(&lock);
	return found;
}
result cuMemGetInfo_v2(uint64_t *available, uint64_t *total)
{
	IN_CONTEXT;
	*available = memory - used, *total = memory;
	return 0;
}
result cuMemAlloc_v2(void **p, uint64_t bytes)
{
	IN_CONTEXT;
	return take(p, bytes, 0);
}
result cuMemFree_v2(void *p)
{
	IN_CONTEXT;
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

// ------------------------------------------------- streams, graphs, kernels

enum { COPY, FILL, LAUNCH };
struct work {
	int kind;
	void *to;
	const void *from;
	uint64_t bytes;
	int value;
	const char *(*kernel)(const unsigned *, const unsigned *, unsigned, const void *, size_t);
	unsigned grid[3], block[3], shared;
	char args[4096]; // as many as a kernel may have
};
struct graph {
	size_t n;
	struct work *list;
};
static struct graph *recording; // by the one stream that a test captures

static result carry_out(const struct work *w)
{
	if (w->kind == COPY) {
		memcpy(w->to, w->from, w->bytes);
	} else if (w->kind == FILL) {
		memset(w->to, w->value, w->bytes);
	} else {
		const char *wrong = w->kernel(w->grid, w->block, w->shared, w->args, (size_t)w->bytes);
		if (wrong) {
			snprintf(message, sizeof message, "%s", wrong);
			return LAUNCH_FAILED;
		}
	}
	return 0;
}
static result queue(const struct work *w)
{
	if (!recording)
		return carry_out(w);
	recording->list = realloc(recording->list, (recording->n + 1) * sizeof *w);
	recording->list[recording->n++] = *w;
	return 0;
}
result cuMemcpyHtoDAsync_v2(uint64_t d, const void *h, uint64_t n, uintptr_t s)
{
	IN_CONTEXT;
	(void)s;
	return inside(d, n)
			   ? queue(&(struct work){.kind = COPY, .to = (void *)d, .from = h, .bytes = n})
			   : ILLEGAL_ADDRESS;
}
result cuMemcpyDtoHAsync_v2(void *h, uint64_t d, uint64_t n, uintptr_t s)
{
	IN_CONTEXT;
	(void)s;
	return inside(d, n)
			   ? queue(&(struct work){.kind = COPY, .to = h, .from = (void *)d, .bytes = n})
			   : ILLEGAL_ADDRESS;
}
result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, uint64_t n, uintptr_t s)
{
	IN_CONTEXT;
	(void)s;
	return inside(to, n) && inside(from, n)
			   ? queue(&(struct work){
					 .kind = COPY, .to = (void *)to, .from = (void *)from, .bytes = n})
			   : ILLEGAL_ADDRESS;
}
result cuMemsetD8Async(uint64_t p, unsigned char v, uint64_t n, uintptr_t s)
{
	IN_CONTEXT;
	(void)s;
	return inside(p, n)
			   ? queue(&(struct work){.kind = FILL, .to = (void *)p, .value = v, .bytes = n})
			   : ILLEGAL_ADDRESS;
}
result cuStreamCreate(uintptr_t *s, unsigned flags)
{
	IN_CONTEXT;
	(void)flags;
	*s = 77;
	return 0;
}
result cuStreamSynchronize(uintptr_t s)
{
	IN_CONTEXT;
	return s == 77 ? 0 : INVALID_VALUE;
}
result cuStreamDestroy_v2(uintptr_t s)
{
	IN_CONTEXT;
	return s == 77 ? 0 : INVALID_VALUE;
}
result cuEventCreate(uintptr_t *e, unsigned flags)
{
	IN_CONTEXT;
	(void)flags;
	static uintptr_t last;
	*e = ++last;
	return 0;
}
result cuEventRecord(uintptr_t e, uintptr_t s)
{
	IN_CONTEXT;
	(void)e, (void)s;
	return 0;
}
result cuStreamWaitEvent(uintptr_t s, uintptr_t e, unsigned flags)
{
	IN_CONTEXT;
	return s && e && !flags ? 0 : INVALID_VALUE;
}
result cuEventSynchronize(uintptr_t e)
{
	IN_CONTEXT;
	(void)e;
	return 0;
}
result cuEventElapsedTime(float *ms, uintptr_t from, uintptr_t to)
{
	IN_CONTEXT;
	*ms = (float)(to - from);
	return 0;
}
result cuEventDestroy_v2(uintptr_t e)
{
	IN_CONTEXT;
	return e ? 0 : INVALID_VALUE;
}
result cuStreamBeginCapture_v2(uintptr_t s, unsigned mode)
{
	IN_CONTEXT;
	(void)s, (void)mode;
	recording = calloc(1, sizeof *recording);
	return 0;
}
result cuStreamEndCapture(uintptr_t s, struct graph **g)
{
	IN_CONTEXT;
	(void)s;
	*g = recording, recording = NULL;
	return 0;
}
result cuGraphInstantiateWithFlags(struct graph **exec, const struct graph *g, uint64_t flags)
{
	IN_CONTEXT;
	(void)flags;
	*exec = malloc(sizeof **exec);
	(*exec)->n = g->n;
	(*exec)->list = malloc(g->n * sizeof *g->list + 1);
	memcpy((*exec)->list, g->list, g->n * sizeof *g->list);
	return 0;
}
result cuGraphLaunch(struct graph *exec, uintptr_t s)
{
	IN_CONTEXT;
	(void)s;
	for (size_t i = 0; i < exec->n; i++) {
		result r = carry_out(&exec->list[i]);
		if (r)
			return r;
	}
	return 0;
}
static result drop(struct graph *g)
{
	free(g->list);
	free(g);
	return 0;
}
result cuGraphExecDestroy(struct graph *g)
{
	IN_CONTEXT;
	return drop(g);
}
result cuGraphDestroy(struct graph *g)
{
	IN_CONTEXT;
	return drop(g);
}
// image_file is the path of a file with the image, which is a shared library or the path of one.
static const char *image_file(const char *image, char *path, size_t n)
{
	if (memcmp(image,
	           "\x7f"
	           "ELF",
	           4) != 0)
		return image;
	Elf64_Ehdr h; // the section headers are the end of the file
	memcpy(&h, image, sizeof h);
	size_t size = h.e_shoff + (size_t)h.e_shnum * h.e_shentsize;
	int fd = memfd_create("kernels", 0);
	if (fd < 0 || write(fd, image, size) != (ssize_t)size)
		return "/nothing";
	snprintf(path, n, "/proc/self/fd/%d", fd); // stays open: another image gets another path
	return path;
}

result cuModuleLoadData(void **m, const char *image)
{
	IN_CONTEXT;
	char path[64];
	*m = dlopen(image_file(image, path, sizeof path), RTLD_NOW | RTLD_LOCAL);
	if (!*m)
		snprintf(message, sizeof message, "%s", dlerror());
	return *m ? 0 : 200;
}

result cuModuleUnload(void *m)
{
	IN_CONTEXT;
	return dlclose(m) ? INVALID_VALUE : 0;
}
result cuModuleGetFunction(void **f, void *m, const char *name)
{
	IN_CONTEXT;
	char symbol[128];
	snprintf(symbol, sizeof symbol, "%s_host", name);
	*f = dlsym(m, symbol);
	return *f ? 0 : NOT_FOUND;
}
result cuFuncSetAttribute(void *f, int attribute, int value)
{
	IN_CONTEXT;
	return f && attribute == 8 && value <= 227 << 10 ? 0 : INVALID_VALUE;
}
result cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                      unsigned bz, unsigned shared, uintptr_t s, void **params, void **extra)
{
	IN_CONTEXT;
	if (!f || s != 77 || params || !extra || (uintptr_t)extra[0] != 1 || (uintptr_t)extra[2] != 2 ||
	    extra[4])
		return INVALID_VALUE;
	struct work w = {.kind = LAUNCH,
	                 .grid = {gx, gy, gz},
	                 .block = {bx, by, bz},
	                 .shared = shared,
	                 .bytes = *(const size_t *)extra[3]};
	memcpy(&w.kernel, &f, sizeof f);
	if (w.bytes > sizeof w.args)
		return INVALID_VALUE;
	memcpy(w.args, extra[1], w.bytes);
	return queue(&w);
}
