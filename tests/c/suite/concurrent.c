/* concurrent MODEL: cancel and close from other threads, two readers of one stream, many
 * streams of one model, threads with small stacks. */
#include "check.h"

#include <limits.h>

static nanochat_model *model;

/* reader reads a stream until a call fails or the answer ends; returns that status. */
static void *reader(void *arg)
{
	nanochat_stream *stream = (nanochat_stream *)arg;
	nanochat_piece piece;
	nanochat_status status;
	char text[256];

	nanochat_piece_init(&piece, sizeof piece);
	do
		status = nanochat_stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &piece, NULL);
	while (!status && !piece.finish);
	return (void *)(intptr_t)status;
}

/* ended starts a reader, calls end while it reads, and returns what the reader got. */
static nanochat_status ended(nanochat_status (*end)(nanochat_stream *), useconds_t after)
{
	nanochat_stream *stream = open_stream(model, 0);
	pthread_t thread;
	double begin;
	void *status;

	CHECK(!pthread_create(&thread, NULL, reader, stream));
	usleep(after);
	begin = now();
	IS(NANOCHAT_OK, end(stream));
	CHECK(!pthread_join(thread, &status));
	CHECK(now() - begin < 5000);
	nanochat_stream_close(stream);
	return (nanochat_status)(intptr_t)status;
}

static void ends(void)
{
	int cancelled = 0, closed = 0;

	for (useconds_t i = 0; i < 60; i++) {
		nanochat_status s = ended(nanochat_stream_cancel, i * 20);

		CHECK(s == NANOCHAT_E_CANCELLED || s == NANOCHAT_OK);
		cancelled += s == NANOCHAT_E_CANCELLED;
		s = ended(nanochat_stream_close, i * 20);
		CHECK(s == NANOCHAT_E_CLOSED || s == NANOCHAT_OK);
		closed += s == NANOCHAT_E_CLOSED;
	}
	CHECK(cancelled > 5 && closed > 5);
}

/* busy: one of two readers at a time. The prompt keeps the engine busy for a while. */
static void busy(void)
{
	nanochat_stream *stream = open_stream(model, 0);
	nanochat_piece piece;
	nanochat_status status = NANOCHAT_OK;
	pthread_t thread;
	char text[256];
	void *other;
	int seen = 0;

	nanochat_piece_init(&piece, sizeof piece);
	CHECK(!pthread_create(&thread, NULL, reader, stream));
	while (!seen && !piece.finish) {
		status = nanochat_stream_next(stream, 0, text, sizeof text, &piece, NULL);
		CHECK(status == NANOCHAT_OK || status == NANOCHAT_E_BUSY || status == NANOCHAT_E_TIMEOUT);
		seen = status == NANOCHAT_E_BUSY;
	}
	IS(NANOCHAT_OK, nanochat_stream_cancel(stream));
	CHECK(!pthread_join(thread, &other));
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
}

struct answer {
	pthread_t thread;
	unsigned seed;
	size_t length;
	char text[4096];
};

static void *answer(void *arg)
{
	struct answer *a = (struct answer *)arg;
	nanochat_generate_options o;
	nanochat_stream *stream;
	nanochat_piece piece;

	nanochat_generate_options_init(&o, sizeof o);
	o.max_tokens = 30;
	o.temperature = 1;
	o.seed = a->seed;
	IS(NANOCHAT_OK, nanochat_stream_open(model, "let x", 5, &o, &stream, NULL));
	nanochat_piece_init(&piece, sizeof piece);
	do {
		IS(NANOCHAT_OK, nanochat_stream_next(stream, NANOCHAT_FOREVER, a->text + a->length,
		                                     sizeof a->text - a->length, &piece, NULL));
		a->length += (size_t)piece.length;
	} while (!piece.finish);
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	return NULL;
}

/* many: an answer is the same alone and beside others, on threads with the smallest stacks. */
static void many(void)
{
	enum { N = 24 };
	static struct answer alone[N], beside[N];
	pthread_attr_t small;

	CHECK(!pthread_attr_init(&small));
	CHECK(!pthread_attr_setstacksize(&small, 64 << 10));
	for (unsigned i = 0; i < N; i++) {
		alone[i].seed = beside[i].seed = i;
		answer(&alone[i]);
	}
	for (int i = 0; i < N; i++)
		CHECK(!pthread_create(&beside[i].thread, &small, answer, &beside[i]));
	for (int i = 0; i < N; i++) {
		CHECK(!pthread_join(beside[i].thread, NULL));
		CHECK(alone[i].length == beside[i].length);
		CHECK(!memcmp(alone[i].text, beside[i].text, alone[i].length));
	}
	pthread_attr_destroy(&small);
}

int concurrent(int argc, char **argv)
{
	CHECK(argc == 1);
	model = open_model(argv[0], 2);
	ends();
	busy();
	many();
	IS(NANOCHAT_OK, nanochat_model_close(model));
	return 0;
}
