/* table MODEL OPERATIONS THREADS SEED: random operations on handles of every kind: open, closed,
 * NULL, of another kind, and bits that never were one. Every thread keeps a table of what its
 * handles must be and compares the status of every call with it. chaos.c is the same with handles
 * that threads take from each other. */
#include "check.h"

#include <stdarg.h>

enum kind { MODEL, STREAM, ERROR, SESSION, JOB, KINDS };

#define SLOTS 48

struct slot {
	uintptr_t handle;
	enum kind kind;
	int open, cancelled, ended;
};

struct worker {
	pthread_t thread;
	uint64_t random;
	uintptr_t newest; /* numbers of handles only grow */
	struct slot slots[SLOTS];
};

static const char *path;
static long operations;

static uint32_t roll(struct worker *w, uint32_t n)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return (uint32_t)(w->random >> 33) % n;
}

static nanochat_status close_it(uintptr_t h, enum kind kind)
{
	switch (kind) {
	case MODEL:
		return nanochat_model_close((nanochat_model *)h);
	case STREAM:
		return nanochat_stream_close((nanochat_stream *)h);
	case SESSION:
		return nanochat_session_close((nanochat_session *)h);
	case JOB:
		return nanochat_job_close((nanochat_job *)h);
	default:
		nanochat_error_free((nanochat_error *)h);
		return NANOCHAT_OK;
	}
}

/* keep puts a new handle into a slot of its kind: the first is for a model. */
static void keep(struct worker *w, enum kind kind, void *handle)
{
	struct slot *s = &w->slots[kind == MODEL ? 0 : 1 + roll(w, SLOTS - 1)];

	CHECK((uintptr_t)handle > w->newest);
	w->newest = (uintptr_t)handle;
	if (s->open)
		IS(NANOCHAT_OK, close_it(s->handle, s->kind));
	memset(s, 0, sizeof *s);
	s->handle = (uintptr_t)handle;
	s->kind = kind;
	s->open = 1;
}

/* pick chooses a handle for a call that wants a kind. It returns the slot if it is an open handle
 * of that kind, and otherwise sets *wrong to the status that the call must have; -1 stands
 * for E_INVALID or E_CLOSED. */
static struct slot *pick(struct worker *w, enum kind want, uintptr_t *handle, int *wrong)
{
	struct slot *s = &w->slots[roll(w, SLOTS)];

	for (int i = 0; i < SLOTS && s->kind != want && roll(w, 16); i++)
		s = &w->slots[roll(w, SLOTS)];
	if (want == MODEL && roll(w, 8))
		s = &w->slots[0];
	*handle = s->handle;
	*wrong = 0;
	switch (roll(w, 24)) {
	case 0:
		*handle = 0;
		*wrong = NANOCHAT_E_INVALID;
		return NULL;
	case 1:
		*handle = (uintptr_t)w->random;
		*wrong = -1;
		return NULL;
	case 2:
		*handle = s->handle & ~(uintptr_t)1;
		*wrong = NANOCHAT_E_INVALID;
		return NULL;
	}
	if (!s->handle || s->kind != want)
		*wrong = NANOCHAT_E_INVALID;
	else if (!s->open)
		*wrong = NANOCHAT_E_CLOSED;
	return *wrong ? NULL : s;
}

/* expect compares a status with what a wrong handle gives, or else with a list that ends with
 * -1. */
static void expect(int line, int wrong, nanochat_status got, ...)
{
	va_list list;
	int want, ok = 0;

	va_start(list, got);
	if (wrong == -1)
		ok = got == NANOCHAT_E_INVALID || got == NANOCHAT_E_CLOSED;
	else if (wrong)
		ok = got == wrong;
	else
		while ((want = va_arg(list, int)) >= 0)
			ok |= got == want;
	va_end(list);
	if (!ok) {
		fprintf(stderr, "%s:%d: %s; wrong is %d\n", __FILE__, line, nanochat_status_name(got),
		        wrong);
		_exit(1);
	}
}

#define EXPECT(...) expect(__LINE__, wrong, __VA_ARGS__, -1)

static void use_model(struct worker *w)
{
	static const char *const roles[] = {"user"}, *const contents[] = {"fn main"};
	nanochat_generate_options o;
	nanochat_stream *stream = NULL, *two[2] = {NULL, NULL};
	nanochat_session *session;
	nanochat_model *model;
	uintptr_t h;
	int wrong, i;
	struct slot *s = pick(w, MODEL, &h, &wrong);
	int32_t ids[64];
	char buffer[64];
	size_t n;

	nanochat_generate_options_init(&o, sizeof o);
	o.max_tokens = 1 + roll(w, 20);
	o.flags = roll(w, 128);
	o.temperature = roll(w, 2);
	o.seed = roll(w, 9);
	switch (roll(w, 12)) {
	case 0:
		EXPECT(nanochat_tokenize((nanochat_model *)h, "let x", 5, roll(w, 8), ids, 64, &n, NULL),
		       NANOCHAT_OK);
		break;
	case 1:
		ids[0] = (int32_t)roll(w, 300);
		EXPECT(nanochat_detokenize((nanochat_model *)h, ids, 1, 0, buffer, 64, &n, NULL),
		       NANOCHAT_OK);
		break;
	case 2:
		EXPECT(nanochat_model_info((nanochat_model *)h, buffer, 64, &n, NULL),
		       NANOCHAT_E_BUFFER_TOO_SMALL);
		break;
	case 3:
		EXPECT(nanochat_session_open((nanochat_model *)h, &session, NULL), NANOCHAT_OK);
		CHECK(!session == !!wrong);
		if (session)
			keep(w, SESSION, session);
		break;
	case 4:
		EXPECT(nanochat_chat_tokens((nanochat_model *)h, roles, contents, NULL, 1, "phi3", ids, 64,
		                            &n, NULL),
		       NANOCHAT_OK);
		break;
	case 5:
		EXPECT(nanochat_chat_open((nanochat_model *)h, NULL, roles, contents, NULL, 1, NULL, &o,
		                          &stream, NULL),
		       NANOCHAT_OK);
		break;
	case 6:
		EXPECT(nanochat_streams_open((nanochat_model *)h, contents, NULL, 1, &o, two, NULL),
		       NANOCHAT_OK);
		stream = two[0];
		break;
	case 7:
		EXPECT(nanochat_fim_open((nanochat_model *)h, "a", 1, "b", 1, &o, &stream, NULL),
		       NANOCHAT_OK);
		break;
	case 8:
		for (i = 0; i < 3; i++)
			ids[i] = (int32_t)roll(w, 300);
		EXPECT(nanochat_stream_open_tokens((nanochat_model *)h, ids, 3, &o, &stream, NULL),
		       NANOCHAT_OK);
		break;
	case 9:
		if (roll(w, 40))
			break;
		if (h)
			EXPECT(nanochat_model_close((nanochat_model *)h), NANOCHAT_OK);
		if (s)
			s->open = 0;
		break;
	case 10:
		if (w->slots[0].open && roll(w, 100))
			break;
		model = open_model(path, 1);
		keep(w, MODEL, model);
		break;
	default:
		EXPECT(nanochat_stream_open((nanochat_model *)h, "fn main", 7, &o, &stream, NULL),
		       NANOCHAT_OK);
	}
	if (stream)
		keep(w, STREAM, stream);
}

static void use_stream(struct worker *w)
{
	uintptr_t h;
	int wrong;
	struct slot *s = pick(w, STREAM, &h, &wrong);
	nanochat_stream *stream = (nanochat_stream *)h;
	nanochat_status status;
	nanochat_piece piece;
	nanochat_stats stats;
	char buffer[256];
	int32_t ids[4];
	float own[300];
	size_t n;

	nanochat_piece_init(&piece, sizeof piece);
	nanochat_stats_init(&stats, sizeof stats);
	switch (roll(w, 16)) {
	case 0:
		if (h)
			EXPECT(nanochat_stream_close(stream), NANOCHAT_OK);
		if (s)
			s->open = 0;
		break;
	case 1:
		EXPECT(nanochat_stream_cancel(stream), NANOCHAT_OK);
		if (s)
			s->cancelled = 1;
		break;
	case 2:
		EXPECT(nanochat_stream_stats(stream, &stats, NULL), NANOCHAT_OK);
		break;
	case 3:
		EXPECT(nanochat_stream_top(stream, ids, NULL, 4, &n, NULL), NANOCHAT_OK);
		break;
	case 4:
		EXPECT(nanochat_stream_logits(stream, own, 300, &n, NULL), NANOCHAT_OK);
		break;
	case 5:
		EXPECT(nanochat_stream_embedding(stream, own, 300, &n, NULL), NANOCHAT_OK,
		       NANOCHAT_E_INVALID);
		break;
	case 6:
		EXPECT(nanochat_streams_wait(&stream, 1, roll(w, 2), &n, NULL), NANOCHAT_OK,
		       NANOCHAT_E_TIMEOUT);
		break;
	default:
		status =
			nanochat_stream_next(stream, roll(w, 3), buffer, roll(w, 8) ? 256 : 0, &piece, NULL);
		if (s && s->ended)
			EXPECT(status, NANOCHAT_OK);
		else if (s && s->cancelled) /* or its end had come already */
			EXPECT(status, NANOCHAT_E_CANCELLED, piece.finish ? NANOCHAT_OK : -2);
		else
			EXPECT(status, NANOCHAT_OK, NANOCHAT_E_TIMEOUT, NANOCHAT_E_BUFFER_TOO_SMALL);
		if (s && !status && piece.finish)
			s->ended = 1;
		CHECK(!s || !s->ended || piece.length == 0);
	}
}

static void use_session(struct worker *w)
{
	uintptr_t h;
	int wrong;
	struct slot *s = pick(w, SESSION, &h, &wrong);
	nanochat_session *session = (nanochat_session *)h;
	nanochat_generate_options o;
	nanochat_stream *stream = NULL;
	int32_t ids[200];
	size_t n;

	nanochat_generate_options_init(&o, sizeof o);
	o.max_tokens = 3;
	switch (roll(w, 8)) {
	case 0:
		if (h)
			EXPECT(nanochat_session_close(session), NANOCHAT_OK);
		if (s)
			s->open = 0;
		break;
	case 1:
		EXPECT(nanochat_session_tokens(session, ids, 200, &n, NULL), NANOCHAT_OK);
		break;
	case 2:
		EXPECT(nanochat_session_truncate(session, roll(w, 9), NULL), NANOCHAT_OK, NANOCHAT_E_BUSY);
		break;
	default:
		EXPECT(nanochat_session_stream(session, "ab", roll(w, 3), &o, &stream, NULL), NANOCHAT_OK,
		       NANOCHAT_E_BUSY, NANOCHAT_E_CONTEXT_FULL);
		if (stream)
			keep(w, STREAM, stream);
	}
}

static void use_job(struct worker *w)
{
	uintptr_t h;
	int wrong;
	struct slot *s = pick(w, JOB, &h, &wrong);
	nanochat_job *job = (nanochat_job *)h, *opened;
	nanochat_status status;
	char buffer[1024];
	int32_t finish;
	size_t n;

	switch (roll(w, 16)) {
	case 0:
		IS(NANOCHAT_OK, nanochat_log_open("error", &opened, NULL));
		keep(w, JOB, opened);
		break;
	case 1:
		IS(NANOCHAT_OK, nanochat_verify_open(path, NULL, &opened, NULL));
		keep(w, JOB, opened);
		break;
	case 2:
		if (h)
			EXPECT(nanochat_job_close(job), NANOCHAT_OK);
		if (s)
			s->open = 0;
		break;
	case 3:
		EXPECT(nanochat_job_cancel(job), NANOCHAT_OK);
		if (s)
			s->cancelled = 1;
		break;
	default:
		status =
			nanochat_job_next(job, roll(w, 2), buffer, roll(w, 8) ? 1024 : 0, &n, &finish, NULL);
		if (s && s->ended)
			EXPECT(status, NANOCHAT_OK);
		else if (s && s->cancelled)
			EXPECT(status, NANOCHAT_E_CANCELLED, NANOCHAT_OK, NANOCHAT_E_BUFFER_TOO_SMALL);
		else
			EXPECT(status, NANOCHAT_OK, NANOCHAT_E_TIMEOUT, NANOCHAT_E_BUFFER_TOO_SMALL);
		if (s && !status && finish)
			s->ended = 1;
	}
}

static void use_error(struct worker *w)
{
	uintptr_t h;
	int wrong;
	struct slot *s = pick(w, ERROR, &h, &wrong);
	nanochat_error *err = (nanochat_error *)h, *made = NULL;
	nanochat_model *none;
	char value[8];
	size_t n;

	switch (roll(w, 5)) {
	case 0:
		IS(NANOCHAT_E_NOT_FOUND, nanochat_model_open("/none", NULL, &none, &made));
		keep(w, ERROR, made);
		break;
	case 1:
		IS(NANOCHAT_E_INVALID, nanochat_get("colour", value, 8, &n, &made));
		keep(w, ERROR, made);
		break;
	case 2:
		nanochat_error_free(err);
		if (s)
			s->open = 0;
		break;
	case 3:
		CHECK(!*nanochat_error_message(err) == !!wrong);
		break;
	default:
		if (h)
			EXPECT(nanochat_error_status(err), NANOCHAT_E_NOT_FOUND, NANOCHAT_E_INVALID);
	}
}

static void *work(void *arg)
{
	struct worker *w = (struct worker *)arg;

	while (__atomic_sub_fetch(&operations, 1, __ATOMIC_RELAXED) >= 0)
		switch (roll(w, 20)) {
		case 0:
			use_error(w);
			break;
		case 1:
		case 2:
			use_job(w);
			break;
		case 3:
		case 4:
			use_model(w);
			break;
		case 5:
		case 6:
			use_session(w);
			break;
		default:
			use_stream(w);
		}
	for (int i = 0; i < SLOTS; i++)
		if (w->slots[i].open)
			IS(NANOCHAT_OK, close_it(w->slots[i].handle, w->slots[i].kind));
	for (int i = 0; i < SLOTS; i++)
		if (w->slots[i].handle && w->slots[i].kind != ERROR)
			IS(NANOCHAT_E_CLOSED, close_it(w->slots[i].handle, w->slots[i].kind));
	return NULL;
}

int table(int argc, char **argv)
{
	static struct worker workers[64];
	nanochat_stream *stream;
	nanochat_model *model;
	int i, n;

	CHECK(argc == 4);
	path = argv[0];
	operations = atol(argv[1]);
	n = atoi(argv[2]);
	CHECK(n >= 1 && n <= 64);
	for (i = 0; i < n; i++) {
		workers[i].random = strtoull(argv[3], NULL, 10) * 64 + (uint64_t)i + 88172645463325252u;
		keep(&workers[i], MODEL, open_model(path, 1));
	}
	for (i = 0; i < n; i++)
		CHECK(!pthread_create(&workers[i].thread, NULL, work, &workers[i]));
	for (i = 0; i < n; i++)
		CHECK(!pthread_join(workers[i].thread, NULL));
	model = open_model(path, 2);
	stream = open_stream(model, 30);
	CHECK(read_all(stream) == 30);
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	IS(NANOCHAT_OK, nanochat_model_close(model));
	return 0;
}
