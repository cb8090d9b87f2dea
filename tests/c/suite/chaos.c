/* chaos MODEL OPERATIONS THREADS SEED: random operations on handles that all threads share, so
 * that every call may meet a handle that another thread has just closed. Afterwards everything
 * is closed, and a stream must still give the text that it gave before. */
#include "check.h"

#define SLOTS 12

static const char *path;
static uintptr_t slots[SLOTS]; /* handles of any kind, open or not */
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

static void operate(struct job *j)
{
	uint32_t at = roll(j, SLOTS);
	uintptr_t h = get(at);
	nanochat_model *m = (nanochat_model *)h, *opened;
	nanochat_stream *s = (nanochat_stream *)h, *started;
	nanochat_generate_options o;
	nanochat_error *err = NULL;
	nanochat_piece piece;
	nanochat_stats stats;
	char buffer[512];
	int32_t ids[64];
	float logprobs[8];
	size_t n;

	nanochat_piece_init(&piece, sizeof piece);
	nanochat_stats_init(&stats, sizeof stats);
	nanochat_generate_options_init(&o, sizeof o);
	switch (roll(j, 40)) {
	case 0:
		if (!nanochat_model_open(path, NULL, &opened, NULL))
			discard(swap(at, opened));
		break;
	case 1:
	case 2:
	case 3:
	case 4:
		o.max_tokens = roll(j, 40);
		o.top_logprobs = roll(j, 3);
		o.seed = roll(j, 5);
		o.temperature = (double)roll(j, 2);
		if (!nanochat_stream_open(m, "fn main", roll(j, 8), &o, &started, NULL))
			discard(swap(roll(j, SLOTS), started));
		break;
	case 5:
		nanochat_model_open("/none", NULL, &opened, &err);
		CHECK(err);
		discard(swap(at, err));
		break;
	case 6:
		nanochat_model_close(m);
		break;
	case 7:
		nanochat_stream_close(s);
		break;
	case 8:
		nanochat_error_free((nanochat_error *)h);
		break;
	case 9:
	case 10:
		nanochat_stream_cancel(s);
		break;
	case 11:
		nanochat_stream_stats(s, &stats, NULL);
		break;
	case 12:
		nanochat_stream_top(s, ids, logprobs, 8, &n, NULL);
		break;
	case 13:
		nanochat_tokenize(m, "struct A { b: u8 }", 18, roll(j, 8), ids, 64, &n, NULL);
		break;
	case 14:
		ids[0] = (int32_t)roll(j, 400);
		nanochat_detokenize(m, ids, 1, 0, buffer, sizeof buffer, &n, NULL);
		break;
	case 15:
		nanochat_model_info(m, buffer, sizeof buffer, &n, NULL);
		break;
	case 16:
		nanochat_error_status((nanochat_error *)h);
		break;
	default:
		nanochat_stream_next(s, roll(j, 3), buffer, roll(j, 64), &piece, NULL);
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
