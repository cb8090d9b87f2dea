/* misuse MODEL: every function with every wrong handle and pointer. Nothing but a status may
 * come of it. */
#include "check.h"

/* handle is a bit pattern as a handle of any kind. */
#define handle(type, bits) ((type *)(uintptr_t)(bits))

static const char *path;
static nanochat_model *model;   /* open */
static nanochat_stream *stream; /* open, read to its end */

/* REFUSED says that a call fails as one with a wrong handle, and that err agrees. */
#define REFUSED(call)                                                                       \
	do {                                                                                    \
		nanochat_error *err = NULL;                                                         \
		nanochat_status got = (call);                                                       \
		CHECK(got == NANOCHAT_E_INVALID || got == NANOCHAT_E_CLOSED);                       \
		CHECK(!err || (nanochat_error_status(err) == got && *nanochat_error_message(err))); \
		nanochat_error_free(err);                                                           \
	} while (0)

static void wrong_handle(uintptr_t bits)
{
	nanochat_stream *out = handle(nanochat_stream, 3);
	nanochat_piece piece;
	nanochat_stats stats;
	char buffer[8192];
	int32_t ids[8] = {0};
	float logprobs[8];
	size_t n = 9;

	nanochat_piece_init(&piece, sizeof piece);
	nanochat_stats_init(&stats, sizeof stats);
	if ((nanochat_model *)bits != model) {
		REFUSED(nanochat_model_info(handle(nanochat_model, bits), buffer, 8192, &n, &err));
		CHECK(n == 0);
		n = 9;
		REFUSED(nanochat_tokenize(handle(nanochat_model, bits), "a", 1, 0, ids, 8, &n, &err));
		CHECK(n == 0);
		n = 9;
		REFUSED(nanochat_detokenize(handle(nanochat_model, bits), ids, 1, 0, buffer, 8, &n, &err));
		CHECK(n == 0);
		REFUSED(nanochat_stream_open(handle(nanochat_model, bits), "a", 1, NULL, &out, &err));
		CHECK(!out);
		if (bits)
			REFUSED(nanochat_model_close(handle(nanochat_model, bits)));
	}
	if ((nanochat_stream *)bits != stream) {
		REFUSED(nanochat_stream_next(handle(nanochat_stream, bits), 0, buffer, 8, &piece, &err));
		CHECK(piece.length == 0 && piece.token == -1 && !piece.finish);
		REFUSED(nanochat_stream_top(handle(nanochat_stream, bits), ids, logprobs, 8, &n, &err));
		REFUSED(nanochat_stream_stats(handle(nanochat_stream, bits), &stats, &err));
		REFUSED(nanochat_stream_cancel(handle(nanochat_stream, bits)));
		if (bits)
			REFUSED(nanochat_stream_close(handle(nanochat_stream, bits)));
	}
	if (bits) {
		nanochat_status s = nanochat_error_status(handle(nanochat_error, bits));

		CHECK(s == NANOCHAT_E_INVALID || s == NANOCHAT_E_CLOSED);
	}
	CHECK(!*nanochat_error_message(handle(nanochat_error, bits)));
	CHECK(!*nanochat_error_hint(handle(nanochat_error, bits)));
	nanochat_error_free(handle(nanochat_error, bits));
}

static void null_pointers(void)
{
	nanochat_generate_options o;
	nanochat_piece piece;
	nanochat_stream *out;
	nanochat_model *opened;
	const char *stops[2] = {"a", NULL};
	const size_t huge[2] = {SIZE_MAX, 1};
	char buffer[64];
	int32_t ids[4];
	size_t n;

	IS(NANOCHAT_E_INVALID, nanochat_system_info(buffer, sizeof buffer, NULL, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_system_info(NULL, 10, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_model_open(NULL, NULL, &opened, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_model_open("", NULL, &opened, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_model_open(path, NULL, NULL, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_model_info(model, NULL, 10, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_model_info(model, buffer, sizeof buffer, NULL, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_tokenize(model, NULL, 1, 0, ids, 4, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_tokenize(model, "a", 1, 0, NULL, 4, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_tokenize(model, "a", 1, 0, ids, 4, NULL, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_tokenize(model, "a", 1, ~0u, ids, 4, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_detokenize(model, NULL, 1, 0, buffer, 64, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_detokenize(model, ids, 0, ~0u, buffer, 64, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_detokenize(model, ids, 0, 0, NULL, 64, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_detokenize(model, ids, 0, 0, buffer, 64, NULL, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_detokenize(model, ids, SIZE_MAX, 0, buffer, 64, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, NULL, 1, NULL, &out, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, NULL, NULL, NULL));

	nanochat_generate_options_init(&o, sizeof o);
	o.stop_count = 1;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, &o, &out, NULL));
	o.stops = stops;
	o.stop_count = 2;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, &o, &out, NULL));
	o.stop_lengths = huge;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, &o, &out, NULL));
	o.stop_count = SIZE_MAX;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, &o, &out, NULL));
	o.stop_count = 0;
	o.bias_count = 1;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, &o, &out, NULL));
	o.bias_ids = ids;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, &o, &out, NULL));
	o.bias_count = SIZE_MAX;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, &o, &out, NULL));

	nanochat_piece_init(&piece, sizeof piece);
	IS(NANOCHAT_E_INVALID, nanochat_stream_next(stream, 0, NULL, 1, &piece, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_stream_next(stream, 0, buffer, 1, NULL, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_stream_top(stream, ids, NULL, 4, NULL, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_stream_stats(stream, NULL, NULL));
	nanochat_generate_options_init(NULL, 8);
	nanochat_piece_init(NULL, 8);
	nanochat_stats_init(NULL, 8);
}

int misuse(int argc, char **argv)
{
	static const uintptr_t patterns[] = {0,
	                                     1,
	                                     2,
	                                     3,
	                                     7,
	                                     9,
	                                     15,
	                                     16,
	                                     17,
	                                     0xffff,
	                                     0x7fffffff,
	                                     1u << 31,
	                                     ~(uintptr_t)0,
	                                     ~(uintptr_t)0 - 1,
	                                     (uintptr_t)1 << 63};
	nanochat_model *closed_model;
	nanochat_stream *closed_stream;
	nanochat_error *freed = NULL;
	uint64_t random = 88172645463325252u;
	int local;

	CHECK(argc == 1);
	path = argv[0];
	/* The patterns above are no numbers given out: use some up. */
	for (int i = 0; i < 3; i++)
		IS(NANOCHAT_OK, nanochat_model_close(open_model(path, 1)));
	model = open_model(path, 1);
	stream = open_stream(model, 2);
	read_all(stream);
	closed_model = open_model(path, 1);
	closed_stream = open_stream(closed_model, 2);
	IS(NANOCHAT_OK, nanochat_model_close(closed_model));
	IS(NANOCHAT_OK, nanochat_stream_close(closed_stream));
	IS(NANOCHAT_E_INVALID, nanochat_model_open("", NULL, &closed_model, &freed));
	nanochat_error_free(freed);

	for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
		wrong_handle(patterns[i]);
	wrong_handle((uintptr_t)closed_stream);
	wrong_handle((uintptr_t)freed);
	wrong_handle((uintptr_t)&local);
	wrong_handle((uintptr_t)&local + 1);
	wrong_handle((uintptr_t)model);
	wrong_handle((uintptr_t)stream);
	for (int i = 0; i < 2000; i++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		wrong_handle((uintptr_t)(i % 2 ? random : random & 0xff0));
	}
	null_pointers();
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	IS(NANOCHAT_OK, nanochat_model_close(model));
	return 0;
}
