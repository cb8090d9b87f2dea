/* contract MODEL: the paragraphs of the header that need no second thread. */
#include "check.h"

#include <math.h>

static void versions(void)
{
	static const nanochat_status known[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,
	                                        10, 11, 12, 13, 14, 15, 16, 17, 18, 99};

	CHECK(nanochat_abi_version() == NANOCHAT_ABI_VERSION);
	CHECK(!strcmp(nanochat_version(), NANOCHAT_VERSION_STRING));
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		CHECK(strcmp(nanochat_status_name(known[i]), "E_UNKNOWN"));
	CHECK(!strcmp(nanochat_status_name(19), "E_UNKNOWN"));
	CHECK(!strcmp(nanochat_status_name(-1), "E_UNKNOWN"));
	CHECK(!strcmp(nanochat_finish_name(0), "") && !strcmp(nanochat_finish_name(99), ""));
	CHECK(!strcmp(nanochat_finish_name(NANOCHAT_FINISH_CANCELLED), "cancelled"));
}

static void errors(void)
{
	nanochat_error *err = NULL;
	nanochat_model *model = (nanochat_model *)1;

	IS(NANOCHAT_E_NOT_FOUND, nanochat_model_open("/none/such.gguf", NULL, &model, &err));
	CHECK(!model && err);
	CHECK(nanochat_error_status(err) == NANOCHAT_E_NOT_FOUND);
	CHECK(strstr(nanochat_error_message(err), "/none/such.gguf"));
	CHECK(*nanochat_error_hint(err));
	nanochat_error_free(err);
	CHECK(nanochat_error_status(err) == NANOCHAT_E_CLOSED);
	CHECK(!*nanochat_error_message(err) && !*nanochat_error_hint(err));
	nanochat_error_free(err);
	nanochat_error_free(NULL);
	CHECK(nanochat_error_status(NULL) == NANOCHAT_OK && !*nanochat_error_message(NULL));
	IS(NANOCHAT_E_NOT_FOUND, nanochat_model_open("/none/such.gguf", NULL, &model, NULL));
}

/* results is the two-call pattern. */
static void results(nanochat_model *model)
{
	char buffer[4096], one;
	size_t n = 1, m = 2;

	IS(NANOCHAT_OK, nanochat_model_info(model, NULL, 0, &n, NULL));
	CHECK(n > 100 && n < sizeof buffer);
	IS(NANOCHAT_E_BUFFER_TOO_SMALL, nanochat_model_info(model, &one, 1, &m, NULL));
	CHECK(m == n);
	IS(NANOCHAT_E_BUFFER_TOO_SMALL, nanochat_model_info(model, &one, 0, &m, NULL));
	memset(buffer, '#', sizeof buffer);
	IS(NANOCHAT_OK, nanochat_model_info(model, buffer, n, &m, NULL));
	CHECK(m == n && buffer[0] == '{' && buffer[n - 1] == '}' && buffer[n] == '#');
	IS(NANOCHAT_OK, nanochat_system_info(buffer, sizeof buffer - 1, &m, NULL));
	buffer[m] = 0;
	CHECK(strstr(buffer, "\"version\":\"" NANOCHAT_VERSION_STRING "\""));
}

static void tokens(nanochat_model *model)
{
	static const char text[] = "fn gr\xc3\xb6\xc3\x9f\x65(a\0b) {\xff}";
	int32_t ids[64];
	char back[64];
	size_t n, m, with;

	IS(NANOCHAT_OK, nanochat_tokenize(model, text, sizeof text, 0, NULL, 0, &n, NULL));
	CHECK(n > 0 && n <= sizeof text);
	IS(NANOCHAT_E_BUFFER_TOO_SMALL,
	   nanochat_tokenize(model, text, sizeof text, 0, ids, n - 1, &m, NULL));
	CHECK(m == n);
	IS(NANOCHAT_OK, nanochat_tokenize(model, text, sizeof text, 0, ids, 64, &m, NULL));
	CHECK(m == n);
	IS(NANOCHAT_OK, nanochat_detokenize(model, ids, n, 0, back, sizeof back, &m, NULL));
	CHECK(m == sizeof text && !memcmp(back, text, m));
	IS(NANOCHAT_OK,
	   nanochat_tokenize(model, text, sizeof text, NANOCHAT_TOKENIZE_BOS, NULL, 0, &with, NULL));
	CHECK(with == n + 1);
	IS(NANOCHAT_OK, nanochat_tokenize(model, NULL, 0, 0, NULL, 0, &n, NULL));
	CHECK(n == 0);
	IS(NANOCHAT_OK, nanochat_detokenize(model, NULL, 0, 0, NULL, 0, &n, NULL));
	CHECK(n == 0);
	ids[0] = -1;
	IS(NANOCHAT_E_INVALID, nanochat_detokenize(model, ids, 1, 0, NULL, 0, &n, NULL));
}

/* A structure of another version of the header. */
union sized {
	unsigned char bytes[256];
	uint32_t size;
	nanochat_generate_options options;
	nanochat_piece piece;
};

static void structures(nanochat_model *model, const char *path)
{
	union sized u;
	nanochat_model_options o;
	nanochat_model *other;
	nanochat_stream *stream;
	char text[64];

	nanochat_generate_options_init(&u.options, sizeof u); /* newer */
	CHECK(u.size == sizeof u && u.options.max_tokens == 200 && u.options.top_p == 1.0);
	u.options.max_tokens = 1;
	IS(NANOCHAT_OK, nanochat_stream_open(model, "a", 1, &u.options, &stream, NULL));
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	u.bytes[sizeof u - 1] = 1;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, &u.options, &stream, NULL));
	CHECK(!stream);
	for (uint32_t size = 0; size < sizeof(nanochat_generate_options); size += 4) {
		u.size = size; /* never made by a header */
		IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, &u.options, &stream, NULL));
	}
	u.size = 1u << 30;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "a", 1, &u.options, &stream, NULL));

	stream = open_stream(model, 3);
	memset(&u, 0xee, sizeof u);
	IS(NANOCHAT_E_INVALID, nanochat_stream_next(stream, 0, text, sizeof text, &u.piece, NULL));
	nanochat_piece_init(&u.piece, sizeof u.piece + 8);
	memset(u.bytes + sizeof u.piece, 0xee, sizeof u - sizeof u.piece);
	IS(NANOCHAT_OK,
	   nanochat_stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &u.piece, NULL));
	CHECK(u.size == sizeof u.piece + 8 && u.bytes[sizeof u.piece] == 0xee);
	IS(NANOCHAT_OK, nanochat_stream_close(stream));

	nanochat_model_options_init(NULL, sizeof o);
	memset(&o, 0xee, sizeof o);
	nanochat_model_options_init(&o, 3); /* no room for the size: nothing is written */
	CHECK(o.struct_size == 0xeeeeeeeeu);
	IS(NANOCHAT_E_INVALID, nanochat_model_open(path, &o, &other, NULL));
	nanochat_model_options_init(&o, 12);
	CHECK(o.struct_size == 12 && o.flags == 0 && o.threads == 0 && o.context == 0xeeeeeeeeu);
}

/* environment: the library reads the variables of the process as C sees them. */
static void environment(const char *path)
{
	nanochat_error *err = NULL;
	nanochat_model *model;
	char buffer[4096];
	size_t n;

	setenv("NANOCHAT_KERNEL", "go", 1);
	setenv("NANOCHAT_THREADS", "1", 1);
	IS(NANOCHAT_OK, nanochat_model_open(path, NULL, &model, NULL));
	IS(NANOCHAT_OK, nanochat_model_info(model, buffer, sizeof buffer - 1, &n, NULL));
	buffer[n] = 0;
	CHECK(strstr(buffer, "\"kernel\":\"go\",\"device\":\"cpu\",\"threads\":1"));
	IS(NANOCHAT_OK, nanochat_model_close(model));
	setenv("NANOCHAT_KERNEL", "abacus", 1);
	IS(NANOCHAT_E_INVALID, nanochat_model_open(path, NULL, &model, &err));
	CHECK(strstr(nanochat_error_message(err), "abacus"));
	CHECK(strstr(nanochat_error_hint(err), "NANOCHAT_KERNEL"));
	nanochat_error_free(err);
	unsetenv("NANOCHAT_KERNEL");
	unsetenv("NANOCHAT_THREADS");
}

static void options(nanochat_model *model)
{
	nanochat_generate_options o;
	nanochat_stream *stream;
	nanochat_piece piece;
	int32_t ids[8], first, ban;
	float logprobs[8], bias = -INFINITY;
	char text[64];
	size_t n;

	nanochat_generate_options_init(&o, sizeof o);
	o.max_tokens = 4;
	o.flags = NANOCHAT_GENERATE_IGNORE_END | NANOCHAT_GENERATE_LOGPROBS;
	o.top_logprobs = 3;
	nanochat_piece_init(&piece, sizeof piece);
	IS(NANOCHAT_OK, nanochat_stream_open(model, "fn", 2, &o, &stream, NULL));
	IS(NANOCHAT_OK, nanochat_stream_top(stream, ids, logprobs, 8, &n, NULL));
	CHECK(n == 0); /* nothing was read yet */
	IS(NANOCHAT_OK,
	   nanochat_stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &piece, NULL));
	IS(NANOCHAT_OK, nanochat_stream_top(stream, NULL, NULL, 0, &n, NULL));
	CHECK(n == 3);
	IS(NANOCHAT_E_BUFFER_TOO_SMALL, nanochat_stream_top(stream, ids, NULL, 2, &n, NULL));
	IS(NANOCHAT_OK, nanochat_stream_top(stream, ids, logprobs, 8, &n, NULL));
	CHECK(ids[0] == piece.token && logprobs[0] == piece.logprob && logprobs[0] >= logprobs[1]);
	first = piece.token;
	IS(NANOCHAT_OK, nanochat_stream_close(stream));

	ban = first;
	o.bias_ids = &ban;
	o.bias_values = &bias;
	o.bias_count = 1;
	IS(NANOCHAT_OK, nanochat_stream_open(model, "fn", 2, &o, &stream, NULL));
	IS(NANOCHAT_OK,
	   nanochat_stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &piece, NULL));
	CHECK(piece.token == ids[1]); /* the second likeliest */
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	ban = 1 << 30;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "fn", 2, &o, &stream, NULL));
	o.bias_count = 0;
	o.temperature = NAN;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open(model, "fn", 2, &o, &stream, NULL));
}

static void limits(nanochat_model *model)
{
	static char prompt[5000];
	nanochat_stream *stream;
	nanochat_error *err = NULL;
	size_t n;

	memset(prompt, 'a', sizeof prompt);
	IS(NANOCHAT_E_CONTEXT_FULL,
	   nanochat_stream_open(model, prompt, sizeof prompt, NULL, &stream, &err));
	CHECK(strstr(nanochat_error_message(err), "500") && *nanochat_error_hint(err));
	nanochat_error_free(err);
	/* The length is refused before the memory is touched. */
	IS(NANOCHAT_E_INVALID,
	   nanochat_stream_open(model, prompt, NANOCHAT_MAX_TEXT + 1, NULL, &stream, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_tokenize(model, prompt, SIZE_MAX, 0, NULL, 0, &n, NULL));
	CHECK(n == 0);
}

static void closing(const char *path)
{
	nanochat_model *model = open_model(path, 1);
	nanochat_stream *stream = open_stream(model, 20);

	IS(NANOCHAT_OK, nanochat_model_close(NULL));
	IS(NANOCHAT_OK, nanochat_stream_close(NULL));
	IS(NANOCHAT_OK, nanochat_model_close(model));
	IS(NANOCHAT_E_CLOSED, nanochat_model_close(model));
	CHECK(read_all(stream) == 20); /* goes on without its model */
	IS(NANOCHAT_OK, nanochat_stream_cancel(stream));
	CHECK(read_all(stream) == 0); /* the end stays */
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	IS(NANOCHAT_E_CLOSED, nanochat_stream_close(stream));
	IS(NANOCHAT_E_CLOSED, nanochat_stream_cancel(stream));
	IS(NANOCHAT_E_INVALID, nanochat_model_close((nanochat_model *)stream));
}

/* host: errno is as it was, whatever a call does. */
static void host(nanochat_model *model, const char *path)
{
	nanochat_model *other;
	nanochat_stream *stream;
	nanochat_error *err;

	errno = 1234;
	IS(NANOCHAT_OK, nanochat_model_open(path, NULL, &other, NULL));
	CHECK(errno == 1234);
	IS(NANOCHAT_OK, nanochat_model_close(other));
	IS(NANOCHAT_E_NOT_FOUND, nanochat_model_open("/none", NULL, &other, &err));
	CHECK(errno == 1234);
	nanochat_error_free(err);
	stream = open_stream(model, 50);
	CHECK(read_all(stream) == 50);
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	CHECK(errno == 1234);
}

int contract(int argc, char **argv)
{
	nanochat_model *model;

	CHECK(argc == 1);
	versions();
	errors();
	model = open_model(argv[0], 1);
	results(model);
	tokens(model);
	structures(model, argv[0]);
	environment(argv[0]);
	options(model);
	limits(model);
	closing(argv[0]);
	host(model, argv[0]);
	IS(NANOCHAT_OK, nanochat_model_close(model));
	return 0;
}
