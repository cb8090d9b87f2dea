/* chaos MODEL OPERATIONS THREADS SEED: random operations on handles that all threads share, so
 * that every call may meet a handle that another thread has just closed. Afterwards everything
 * is closed, and a stream must still give the text that it gave before. */
#include "check.h"

#define MODELS 3
#define STREAMS 24
#define ERRORS 2
#define SLOTS (MODELS + STREAMS + ERRORS)

static const char *path;
static uintptr_t slots[SLOTS]; /* handles, usually of the kind that the slot is for */
static long operations;

struct job {
	pthread_t thread;
	uint64_t random;
};

static uint32_t roll(struct job *j, uint32_t n)
{
	j->random ^= j->random << 13;
	j->random ^= j->random >> 7;
	j->random ^= j->random << 17;
	return (uint32_t)(j->random >> 33) % n;
}

static uintptr_t get(uint32_t i) { return __atomic_load_n(&slots[i], __ATOMIC_RELAXED); }

static uintptr_t swap(uint32_t i, void *h)
{
	return __atomic_exchange_n(&slots[i], (uintptr_t)h, __ATOMIC_RELAXED);
}

/* discard closes a handle of unknown kind, which may be open or not. */
static void discard(uintptr_t h)
{
	nanochat_stream_close((nanochat_stream *)h);
	nanochat_model_close((nanochat_model *)h);
	nanochat_error_free((nanochat_error *)h);
}

/* pick is the slot for a handle of a kind; one time in ten any. */
static uint32_t pick(struct job *j, uint32_t first, uint32_t n)
{
	return roll(j, 10) ? first + roll(j, n) : roll(j, SLOTS);
}

static void use_model(struct job *j)
{
	uint32_t at = pick(j, 0, MODELS);
	nanochat_model *m = (nanochat_model *)get(at), *opened;
	nanochat_stream *started;
	nanochat_generate_options o;
	char buffer[512];
	int32_t ids[64];
	size_t n;

	switch (roll(j, 20)) {
	case 0:
		if (!nanochat_model_open(path, NULL, &opened, NULL))
			discard(swap(at, opened));
		break;
	case 1:
		nanochat_model_close(m);
		break;
	case 2:
		nanochat_tokenize(m, "struct A { b: u8 }", 18, roll(j, 8), ids, 64, &n, NULL);
		break;
	case 3:
		ids[0] = (int32_t)roll(j, 400);
		nanochat_detokenize(m, ids, 1, 0, buffer, sizeof buffer, &n, NULL);
		break;
	case 4:
		nanochat_model_info(m, buffer, sizeof buffer, &n, NULL);
		break;
	default:
		nanochat_generate_options_init(&o, sizeof o);
		o.max_tokens = roll(j, 40);
		o.flags = roll(j, 8);
		o.top_logprobs = roll(j, 3);
		o.seed = roll(j, 5);
		o.temperature = (double)roll(j, 2);
		if (!nanochat_stream_open(m, "fn main", roll(j, 8), &o, &started, NULL))
			discard(swap(pick(j, MODELS, STREAMS), started));
	}
}

static void use_stream(struct job *j)
{
	uint32_t at = pick(j, MODELS, STREAMS);
	nanochat_stream *s = (nanochat_stream *)get(at);
	nanochat_piece piece;
	nanochat_stats stats;
	char buffer[512];
	int32_t ids[8];
	float logprobs[8];
	size_t n;

	nanochat_piece_init(&piece, sizeof piece);
	nanochat_stats_init(&stats, sizeof stats);
	switch (roll(j, 200)) {
	case 0:
		nanochat_stream_close(s);
		break;
	case 1:
		nanochat_stream_cancel(s);
		break;
	case 2:
		nanochat_stream_stats(s, &stats, NULL);
		break;
	case 3:
		nanochat_stream_top(s, ids, logprobs, 8, &n, NULL);
		break;
	default:
		nanochat_stream_next(s, roll(j, 3), buffer, roll(j, 8) ? sizeof buffer : roll(j, 4), &piece,
		                     NULL);
	}
}

static void use_error(struct job *j)
{
	uint32_t at = pick(j, MODELS + STREAMS, ERRORS);
	nanochat_error *e = (nanochat_error *)get(at), *made = NULL;
	nanochat_model *opened;

	switch (roll(j, 3)) {
	case 0:
		nanochat_model_open("/none", NULL, &opened, &made);
		CHECK(made);
		discard(swap(at, made));
		break;
	case 1:
		nanochat_error_free(e);
		break;
	default:
		nanochat_error_status(e);
	}
}

static void operate(struct job *j)
{
	switch (roll(j, 32)) {
	case 0:
		use_error(j);
		break;
	case 1:
	case 2:
		use_model(j);
		break;
	default:
		use_stream(j);
	}
}

static void *work(void *arg)
{
	struct job *j = (struct job *)arg;

	while (__atomic_sub_fetch(&operations, 1, __ATOMIC_RELAXED) >= 0)
		operate(j);
	return NULL;
}

int chaos(int argc, char **argv)
{
	static struct job jobs[64];
	nanochat_model *model;
	nanochat_stream *stream;
	int i, n;

	CHECK(argc == 4);
	path = argv[0];
	operations = atol(argv[1]);
	n = atoi(argv[2]);
	CHECK(n >= 1 && n <= 64);
	slots[0] = (uintptr_t)open_model(path, 1);
	for (i = 0; i < n; i++) {
		jobs[i].random = strtoull(argv[3], NULL, 10) * 64 + (uint64_t)i + 88172645463325252u;
		CHECK(!pthread_create(&jobs[i].thread, NULL, work, &jobs[i]));
	}
	for (i = 0; i < n; i++)
		CHECK(!pthread_join(jobs[i].thread, NULL));
	for (i = 0; i < SLOTS; i++)
		discard(slots[i]);
	model = open_model(path, 2);
	stream = open_stream(model, 30);
	CHECK(read_all(stream) == 30);
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	IS(NANOCHAT_OK, nanochat_model_close(model));
	return 0;
}
