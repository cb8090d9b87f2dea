// A libnccl.so.2 for tests: the members of a group meet in memory, and add in the order of their
// ranks. A sum is carried out when every member's stream has come to it: each of them has to be
// waited for on a thread of its own.
//
// FAKE_NCCL_FAIL ("ncclAllReduce:3@1") makes a function fail with a result, at the member of that
// rank; FAKE_NCCL_LOST ("1") keeps that member from ever coming to a sum, as a broken network
// would.
#define _GNU_SOURCE
#include "driver.h"
#include <pthread.h>

typedef int32_t result;
enum { UNHANDLED = 1, INTERNAL = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };
enum { MEMBERS = 16 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;

struct id {
	char bytes[128];
};
struct member;
struct group {
	struct id id;
	int ranks, joined;
	struct member *members[MEMBERS];
	struct group *next;
};
struct sum {
	struct member *member;
	char *at;
	uint64_t count, number; // the number of the sum in its member's life
	int kind;
};
struct member {
	struct group *group;
	int rank, device, aborted, left;
	uint64_t queued;
	struct sum now;      // what it has come to
	uint64_t here, done; // numbers of sums that it has come to, and has read
};
static struct group *groups;
static int live;

// fake_nccl_left is the members that neither left nor were aborted.
int fake_nccl_left(void) { return live; }

static result injected(const char *name, int rank)
{
	const char *v = getenv("FAKE_NCCL_FAIL");
	const size_t n = strlen(name);
	int code = 0, who = -1;
	if (!v || strncmp(v, name, n) != 0 || v[n] != ':')
		return 0;
	sscanf(v + n + 1, "%d@%d", &code, &who);
	return who < 0 || who == rank ? code : 0;
}

result ncclGetVersion(int *v)
{
	*v = 22304;
	return 0;
}
const char *ncclGetErrorString(result r)
{
	return r == UNHANDLED       ? "unhandled cuda error"
	       : r == INTERNAL      ? "internal error"
	       : r == INVALID_USAGE ? "invalid usage"
	                            : "failed";
}
const char *ncclGetLastError(struct member *m)
{
	(void)m;
	return "the emulated library refused";
}
result ncclGetUniqueId(struct id *id)
{
	static unsigned last;
	result r = injected(__func__, -1);
	if (r)
		return r;
	memset(id, 0x5c, sizeof *id); // all of it has to come back
	const unsigned n = __sync_add_and_fetch(&last, 1);
	memcpy(id->bytes + 60, &n, sizeof n);
	return 0;
}

struct config {
	uint64_t size;
	uint32_t magic, version;
	int32_t blocking;
};
static result join(struct member **out, int ranks, const struct id *id, int rank,
                   const struct config *config)
{
	result r = injected("ncclCommInitRank", rank);
	if (r)
		return r;
	if (!connect_driver() || driver.device() < 0)
		return UNHANDLED;
	if (ranks < 1 || ranks > MEMBERS || rank < 0 || rank >= ranks || id->bytes[0] != 0x5c ||
	    id->bytes[127] != 0x5c || !config || config->size < 24 || config->magic != 0xcafebeef ||
	    config->version < 21400 || config->blocking != 0)
		return INVALID_ARGUMENT;
	pthread_mutex_lock(&lock);
	struct group *g = groups;
	while (g && memcmp(&g->id, id, sizeof *id) != 0)
		g = g->next;
	if (!g) {
		g = calloc(1, sizeof *g);
		g->id = *id, g->ranks = ranks, g->next = groups, groups = g;
	}
	r = g->ranks != ranks || g->members[rank] ? INVALID_USAGE : 0;
	for (int i = 0; i < ranks && !r; i++)
		if (g->members[i] && g->members[i]->device == driver.device())
			r = INVALID_USAGE; // one member a device
	if (!r) {
		struct member *m = calloc(1, sizeof *m);
		m->group = g, m->rank = rank, m->device = driver.device();
		g->members[rank] = m;
		g->joined++;
		live++;
		*out = m;
		r = IN_PROGRESS; // until all are there
	}
	pthread_mutex_unlock(&lock);
	return r;
}
result ncclCommInitRankConfig(struct member **m, int ranks, struct id id, int rank,
                              const struct config *config)
{
	return join(m, ranks, &id, rank, config);
}
// Without NEW_NCCL this is a library before 2.23.
#ifdef NEW_NCCL
result ncclCommInitRankScalable(struct member **m, int ranks, int rank, int ids,
                                const struct id *id, const struct config *config)
{
	return ids == 1 ? join(m, ranks, id, rank, config) : INVALID_ARGUMENT;
}
#endif
result ncclCommGetAsyncError(struct member *m, result *r)
{
	if (!m)
		return INVALID_ARGUMENT;
	pthread_mutex_lock(&lock);
	*r = m->group->joined < m->group->ranks ? IN_PROGRESS : injected(__func__, m->rank);
	pthread_mutex_unlock(&lock);
	return 0;
}

static int arrived(const struct group *g, uint64_t number, int reading)
{
	for (int i = 0; i < g->ranks; i++)
		if ((reading ? g->members[i]->done : g->members[i]->here) < number)
			return 0;
	return 1;
}

// carry_out is a stream that has come to a sum. An aborted member goes on with what it has.
static const char *carry_out(void *args)
{
	struct sum s = *(struct sum *)args;
	struct member *m = s.member;
	struct group *g = m->group;
	const char *wrong = NULL;
	char *sum = NULL;
	pthread_mutex_lock(&lock);
	const char *lost = getenv("FAKE_NCCL_LOST");
	if (!lost || atoi(lost) != m->rank)
		m->now = s, m->here = s.number;
	pthread_cond_broadcast(&change);
	while (!m->aborted && !arrived(g, s.number, 0))
		pthread_cond_wait(&change, &lock);
	if (!m->aborted) {
		sum = calloc(s.count, 8);
		for (int i = 0; i < g->ranks && !wrong; i++) {
			const struct sum *x = &g->members[i]->now;
			if (x->count != s.count || x->kind != s.kind)
				wrong = "members of a group add up different things";
			for (uint64_t j = 0; j < s.count && !wrong; j++)
				if (s.kind == 7)
					((float *)sum)[j] =
						i ? ((float *)sum)[j] + ((float *)x->at)[j] : ((float *)x->at)[j];
				else
					((double *)sum)[j] =
						i ? ((double *)sum)[j] + ((double *)x->at)[j] : ((double *)x->at)[j];
		}
		m->done = s.number;
		pthread_cond_broadcast(&change);
		while (!m->aborted && !arrived(g, s.number, 1)) // others read what comes next
			pthread_cond_wait(&change, &lock);
		if (!m->aborted && !wrong)
			memcpy(s.at, sum, s.count * (s.kind == 7 ? 4 : 8));
	}
	pthread_mutex_unlock(&lock);
	free(sum);
	return wrong;
}

result ncclAllReduce(const void *from, void *to, size_t count, int kind, int operation,
                     struct member *m, uintptr_t stream)
{
	if (!m || m->left || from != to || (kind != 7 && kind != 8) || operation != 0)
		return INVALID_ARGUMENT;
	result r = injected(__func__, m->rank);
	if (r)
		return r;
	if (driver.device() != m->device || !driver.inside((uintptr_t)to, count * (kind == 7 ? 4 : 8)))
		return INVALID_USAGE;
	struct sum s = {m, to, count, ++m->queued, kind};
	return driver.queue(stream, carry_out, &s, sizeof s) ? UNHANDLED : 0;
}

// Members stay in memory: sums that are queued know them.
static result leave(struct member *m, int abort)
{
	if (!m || m->left)
		return INVALID_ARGUMENT;
	pthread_mutex_lock(&lock);
	m->left = 1, m->aborted |= abort;
	live--;
	pthread_cond_broadcast(&change);
	pthread_mutex_unlock(&lock);
	return 0;
}
result ncclCommFinalize(struct member *m)
{
	return !m || m->left ? INVALID_ARGUMENT : injected(__func__, m->rank);
}
result ncclCommDestroy(struct member *m) { return leave(m, 0); }
result ncclCommAbort(struct member *m) { return leave(m, 1); }
