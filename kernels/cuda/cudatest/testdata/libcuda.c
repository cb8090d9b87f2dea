// A libcuda.so.1 for tests: device memory is memory, and a module is the path of a shared
// library with host builds of the kernels. It checks what a driver takes on trust: that the
// caller's thread has the context, that addresses lie within what was allocated on its device, that
// nothing is freed twice or leaked.
//
// Streams are as lazy as they may be: work is done when somebody waits for it, so that the host
// cannot read results or write over pinned memory too early without being found out. Of a device's
// streams after its first one, some work is done at once, at random by NC_SEED: what does not wait
// for the first stream's work is found out too.
//
// FAKE_CUDA_DEVICES (default 1), FAKE_CUDA_VERSION, FAKE_CUDA_MEMORY (bytes of each device) and
// FAKE_CUDA_FAIL ("cuMemAlloc_v2:700:3": from the third call on it gives 700; with "@1" behind it,
// of those for device 1) set the scene; they are read by cuInit. A kernel that fails makes its
// device unusable until the context is released.
#define _GNU_SOURCE
#include "libcuda_memory.h"

// ------------------------------------------------- streams, graphs, kernels

// A mark is a place in a stream. An event is its last mark; marks stay for those who wait for them.
struct mark {
	struct stream *stream;
	int done;
};
struct event {
	struct mark *mark; // null: it was never recorded
	int device;
};
enum { COPY, FILL, LAUNCH, CALL_BACK, RECORD, AWAIT };
struct work {
	int kind;
	void *to;
	const void *from; // of a copy; one that has been copied already is in args
	uint64_t bytes;   // of a copy, a filling, the argument
	int value;
	const char *(*kernel)(const unsigned *, const unsigned *, unsigned, const void *, size_t);
	const char *(*call)(void *);
	unsigned grid[3], block[3], shared;
	struct mark *mark;
	char *args; // aligned to 64
};
struct list {
	size_t n, room;
	struct work *items;
};
struct stream {
	int device, later; // later: not the first of its device
	struct list work;
	size_t next; // of work
	struct list *recording;
	struct stream *link;
};
static struct stream *streams[DEVICES];
static pthread_mutex_t emulation = PTHREAD_MUTEX_INITIALIZER; // kernels have static memory

static struct work *append(struct list *l, const struct work *w)
{
	if (l->n == l->room) {
		l->room = l->room ? 2 * l->room : 64;
		l->items = realloc(l->items, l->room * sizeof *l->items);
	}
	l->items[l->n] = *w;
	if (w->args) { // one copy for each list
		const size_t room = (w->bytes + 63) / 64 * 64;
		l->items[l->n].args = aligned_alloc(64, room ? room : 64);
		memcpy(l->items[l->n].args, w->args, w->bytes);
	}
	return &l->items[l->n++];
}
static void clear(struct list *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->items[i].args);
	l->n = 0;
}

static void advance(struct stream *s, const struct mark *until);

static void carry_out(struct stream *s, const struct work *w)
{
	if (w->kind == RECORD) {
		w->mark->done = 1;
		return;
	}
	if (lost[s->device])
		return;
	const char *wrong = NULL;
	switch (w->kind) {
	case COPY:
		memmove(w->to, w->args ? w->args : w->from, w->bytes);
		break;
	case FILL:
		memset(w->to, w->value, w->bytes);
		break;
	case LAUNCH:
		pthread_mutex_lock(&emulation);
		wrong = w->kernel(w->grid, w->block, w->shared, w->args, (size_t)w->bytes);
		pthread_mutex_unlock(&emulation);
		break;
	case CALL_BACK:
		wrong = w->call(w->args);
		break;
	case AWAIT:
		if (!w->mark->done)
			advance(w->mark->stream, w->mark);
		break;
	}
	if (wrong) {
		snprintf(message, sizeof message, "%s", wrong);
		lost[s->device] = LAUNCH_FAILED;
	}
}

// advance carries out a stream's work, all of it or until a mark is reached.
static void advance(struct stream *s, const struct mark *until)
{
	while (s->next < s->work.n && !(until && until->done)) {
		struct work w = s->work.items[s->next++]; // it may be the turn of others meanwhile
		carry_out(s, &w);
	}
	if (s->next == s->work.n) {
		clear(&s->work);
		s->next = 0;
	}
}
static void drain(int device)
{
	for (struct stream *s = streams[device]; s; s = s->link)
		advance(s, NULL);
}

// stream is the one of this address on the current device, or null.
static struct stream *stream_of(uintptr_t at)
{
	struct stream *s = streams[current - FIRST];
	while (s && (uintptr_t)s != at)
		s = s->link;
	return s;
}

static result queue(uintptr_t at, const struct work *w)
{
	struct stream *s = stream_of(at);
	if (!s)
		return INVALID_HANDLE;
	append(s->recording ? s->recording : &s->work, w);
	if (s->later && !s->recording) {
		static uint64_t dice;
		if (!dice)
			dice = (uint64_t)env("NC_SEED", 0) * 2 + 0x9E3779B97F4A7C15u;
		dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
		if (dice >> 40 & 1)
			advance(s, NULL);
	}
	return 0;
}

// fake_cuda_queue queues a function for another emulated library: it gets a copy of its argument
// and returns what is wrong, or null.
result fake_cuda_queue(uintptr_t s, const char *(*call)(void *), const void *args, uint64_t bytes)
{
	if (!current)
		return INVALID_CONTEXT;
	if (lost[current - FIRST])
		return lost[current - FIRST];
	return queue(
		s, &(struct work){.kind = CALL_BACK, .call = call, .args = (char *)args, .bytes = bytes});
}
// fake_cuda_device is the number of the thread's device, -1 without one.
int fake_cuda_device(void) { return current ? (int)(current - FIRST) : -1; }

result cuMemcpyHtoDAsync_v2(uint64_t d, const void *h, uint64_t n, uintptr_t at)
{
	USABLE;
	struct stream *s = stream_of(at);
	if (!inside(d, n))
		return ILLEGAL_ADDRESS;
	const int pinned = holds((uintptr_t)h, n, 1);
	if (!pinned && s && s->recording)
		return CAPTURE_UNSUPPORTED;
	return queue(at, &(struct work){.kind = COPY,
	                                .to = (void *)d,
	                                .from = h,
	                                .args = pinned ? NULL : (char *)h,
	                                .bytes = n});
}
result cuMemcpyDtoHAsync_v2(void *h, uint64_t d, uint64_t n, uintptr_t at)
{
	USABLE;
	struct stream *s = stream_of(at);
	if (!inside(d, n))
		return ILLEGAL_ADDRESS;
	const int pinned = holds((uintptr_t)h, n, 1);
	if (!pinned && s && s->recording)
		return CAPTURE_UNSUPPORTED;
	result r = queue(at, &(struct work){.kind = COPY, .to = h, .from = (void *)d, .bytes = n});
	if (!r && !pinned)
		advance(s, NULL);
	return r;
}
result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, uint64_t n, uintptr_t s)
{
	USABLE;
	return inside(to, n) && inside(from, n)
			   ? queue(s,
			           &(struct work){
						   .kind = COPY, .to = (void *)to, .from = (void *)from, .bytes = n})
			   : ILLEGAL_ADDRESS;
}
result cuMemsetD8Async(uint64_t p, unsigned char v, uint64_t n, uintptr_t s)
{
	USABLE;
	return inside(p, n)
			   ? queue(s, &(struct work){.kind = FILL, .to = (void *)p, .value = v, .bytes = n})
			   : ILLEGAL_ADDRESS;
}
result cuStreamCreate(struct stream **s, unsigned flags)
{
	USABLE;
	(void)flags;
	*s = calloc(1, sizeof **s);
	(*s)->device = (int)(current - FIRST);
	(*s)->later = streams[(*s)->device] != NULL;
	(*s)->link = streams[(*s)->device];
	streams[(*s)->device] = *s;
	return 0;
}
result cuStreamSynchronize(uintptr_t at)
{
	USABLE;
	struct stream *s = stream_of(at);
	if (!s)
		return INVALID_HANDLE;
	if (s->recording)
		return CAPTURE_UNSUPPORTED;
	advance(s, NULL);
	if (!lost[s->device])
		lost[s->device] = fences(s->device);
	return lost[s->device];
}
result cuStreamQuery(uintptr_t at)
{
	USABLE;
	struct stream *s = stream_of(at);
	if (!s)
		return INVALID_HANDLE;
	advance(s, NULL);
	return lost[s->device];
}
result cuStreamDestroy_v2(uintptr_t at)
{
	IN_CONTEXT;
	struct stream *s = stream_of(at);
	if (!s)
		return INVALID_HANDLE;
	advance(s, NULL);
	struct stream **link = &streams[s->device];
	while (*link != s)
		link = &(*link)->link;
	*link = s->link;
	free(s->work.items);
	free(s);
	return 0;
}
result cuEventCreate(struct event **e, unsigned flags)
{
	USABLE;
	(void)flags;
	*e = calloc(1, sizeof **e);
	(*e)->device = (int)(current - FIRST);
	return 0;
}
result cuEventRecord(struct event *e, uintptr_t at)
{
	USABLE;
	struct stream *s = stream_of(at);
	if (!s || e->device != (int)(current - FIRST))
		return INVALID_HANDLE;
	if (s->recording)
		return CAPTURE_UNSUPPORTED;
	e->mark = calloc(1, sizeof *e->mark);
	e->mark->stream = s;
	return queue(at, &(struct work){.kind = RECORD, .mark = e->mark});
}
result cuStreamWaitEvent(uintptr_t at, struct event *e, unsigned flags)
{
	USABLE;
	struct stream *s = stream_of(at);
	if (!s || !e || flags)
		return INVALID_HANDLE;
	if (s->recording)
		return CAPTURE_ISOLATION;
	return e->mark && !e->mark->done ? queue(at, &(struct work){.kind = AWAIT, .mark = e->mark})
	                                 : 0;
}
result cuEventSynchronize(struct event *e)
{
	USABLE;
	if (e->mark && !e->mark->done)
		advance(e->mark->stream, e->mark);
	return lost[e->device];
}
result cuEventElapsedTime(float *ms, struct event *from, struct event *to)
{
	USABLE;
	if (!from->mark || !from->mark->done || !to->mark || !to->mark->done)
		return 600; // not ready
	*ms = 1;
	return 0;
}
result cuEventDestroy_v2(struct event *e)
{
	IN_CONTEXT;
	drain(e->device); // nothing waits for it any more
	free(e);
	return 0;
}
result cuStreamBeginCapture_v2(uintptr_t at, unsigned mode)
{
	USABLE;
	(void)mode;
	struct stream *s = stream_of(at);
	if (!s || s->recording)
		return INVALID_HANDLE;
	s->recording = calloc(1, sizeof *s->recording);
	return 0;
}
result cuStreamEndCapture(uintptr_t at, struct list **g)
{
	USABLE;
	struct stream *s = stream_of(at);
	if (!s || !s->recording)
		return INVALID_HANDLE;
	*g = s->recording, s->recording = NULL;
	return 0;
}
result cuGraphInstantiateWithFlags(struct list **exec, const struct list *g, uint64_t flags)
{
	USABLE;
	(void)flags;
	*exec = calloc(1, sizeof **exec);
	for (size_t i = 0; i < g->n; i++)
		append(*exec, &g->items[i]);
	return 0;
}
result cuGraphLaunch(struct list *exec, uintptr_t s)
{
	USABLE;
	result r = 0;
	for (size_t i = 0; i < exec->n && !r; i++)
		r = queue(s, &exec->items[i]);
	return r;
}
static result drop(struct list *g)
{
	clear(g);
	free(g->items);
	free(g);
	return 0;
}
result cuGraphExecDestroy(struct list *g)
{
	IN_CONTEXT;
	return drop(g);
}
result cuGraphDestroy(struct list *g)
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
// What functions may ask for beyond 48 KiB of dynamic shared memory.
static struct {
	void *function;
	int bytes;
} much[1024];

// may_have is the dynamic shared memory that launches of f may ask for; with bytes above 0 it
// becomes that.
static int may_have(void *f, int bytes)
{
	int have = 48 << 10;
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < sizeof much / sizeof much[0]; i++) {
		if (much[i].function && much[i].function != f)
			continue;
		if (bytes > 0)
			much[i].function = f, much[i].bytes = bytes;
		if (much[i].function && much[i].bytes > have)
			have = much[i].bytes;
		break;
	}
	pthread_mutex_unlock(&lock);
	return have;
}
result cuFuncSetAttribute(void *f, int attribute, int value)
{
	IN_CONTEXT;
	if (!f || attribute != 8 || value < 0 || value > 227 << 10)
		return INVALID_VALUE;
	may_have(f, value);
	return 0;
}
result cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                      unsigned bz, unsigned shared, uintptr_t s, void **params, void **extra)
{
	USABLE;
	const uint64_t threads = (uint64_t)bx * by * bz;
	if (!f || params || !extra || (uintptr_t)extra[0] != 1 || (uintptr_t)extra[2] != 2 ||
	    extra[4] || !gx || !gy || !gz || gy > 65535 || gz > 65535 || !threads || threads > 1024 ||
	    (shared > 48 << 10 && shared > (unsigned)may_have(f, 0)))
		return INVALID_VALUE;
	struct work w = {.kind = LAUNCH,
	                 .grid = {gx, gy, gz},
	                 .block = {bx, by, bz},
	                 .shared = shared,
	                 .args = extra[1],
	                 .bytes = *(const size_t *)extra[3]};
	memcpy(&w.kernel, &f, sizeof f);
	if (w.bytes > 4096)
		return INVALID_VALUE;
	return queue(s, &w);
}

// cuLaunchKernelEx takes programmatic serialisation, which changes no result here: one kernel ends
// before the next begins.
result cuLaunchKernelEx(const void *config, void *f, void **params, void **extra)
{
	struct {
		unsigned grid[3], block[3], shared, pad;
		uintptr_t stream;
		const struct {
			int id, pad, value[16];
		} *attributes;
		unsigned count, pad2;
	} c;
	USABLE;
	memcpy(&c, config, sizeof c);
	for (unsigned i = 0; i < c.count; i++)
		if (c.attributes[i].id != 6 || c.attributes[i].value[0] != 1)
			return INVALID_VALUE;
	return cuLaunchKernel(f, c.grid[0], c.grid[1], c.grid[2], c.block[0], c.block[1], c.block[2],
	                      c.shared, c.stream, params, extra);
}
