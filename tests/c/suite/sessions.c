/* sessions MODEL: sessions, chats, prompts of ids, gaps, echo, logits, embeddings, batches. */
#include "check.h"

enum { VOCAB = 300, DIM = 64 };

static nanochat_model *model;

static nanochat_generate_options with(uint32_t flags, uint32_t max_tokens)
{
	nanochat_generate_options o;

	nanochat_generate_options_init(&o, sizeof o);
	o.flags = flags | NANOCHAT_GENERATE_IGNORE_END;
	o.max_tokens = max_tokens;
	return o;
}

/* answer reads a stream to its end and closes it; returns the number of its tokens. */
static size_t answer(nanochat_stream *stream, int32_t *ids)
{
	nanochat_piece piece;
	char text[256];
	size_t n = 0;

	nanochat_piece_init(&piece, sizeof piece);
	do {
		IS(NANOCHAT_OK,
		   nanochat_stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &piece, NULL));
		if (piece.token >= 0)
			ids[n++] = piece.token;
	} while (!piece.finish);
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	return n;
}

static void session(void)
{
	nanochat_generate_options o = with(0, 4);
	nanochat_session *session;
	nanochat_stream *stream, *other;
	int32_t ids[64], first[8], again[8], prompt[8];
	size_t n, m;

	IS(NANOCHAT_OK, nanochat_session_open(model, &session, NULL));
	IS(NANOCHAT_OK, nanochat_session_tokens(session, NULL, 0, &n, NULL));
	CHECK(n == 0);
	IS(NANOCHAT_OK, nanochat_session_stream(session, "fn", 2, &o, &stream, NULL));
	IS(NANOCHAT_E_BUSY, nanochat_session_stream(session, "x", 1, &o, &other, NULL));
	CHECK(!other);
	IS(NANOCHAT_E_BUSY, nanochat_session_truncate(session, 0, NULL));
	CHECK(answer(stream, first) == 4);
	IS(NANOCHAT_OK,
	   nanochat_tokenize(model, "fn", 2, NANOCHAT_TOKENIZE_PROMPT, prompt, 8, &m, NULL));
	IS(NANOCHAT_E_BUFFER_TOO_SMALL, nanochat_session_tokens(session, ids, 1, &n, NULL));
	IS(NANOCHAT_OK, nanochat_session_tokens(session, ids, 64, &n, NULL));
	CHECK(n == m + 4);
	CHECK(!memcmp(ids, prompt, m * sizeof *ids) && !memcmp(ids + m, first, 4 * sizeof *ids));

	/* Back to the prompt: the same answer comes again. */
	IS(NANOCHAT_OK, nanochat_session_truncate(session, m, NULL));
	IS(NANOCHAT_OK, nanochat_session_stream(session, NULL, 0, &o, &stream, NULL));
	CHECK(answer(stream, again) == 4 && !memcmp(first, again, 4 * sizeof *ids));

	/* A stream outlives its session, and a session its model's handle. */
	IS(NANOCHAT_OK, nanochat_session_stream(session, "y", 1, &o, &stream, NULL));
	IS(NANOCHAT_OK, nanochat_session_close(session));
	IS(NANOCHAT_E_CLOSED, nanochat_session_close(session));
	IS(NANOCHAT_E_CLOSED, nanochat_session_tokens(session, ids, 64, &n, NULL));
	CHECK(n == 0 && answer(stream, ids) == 4);
	IS(NANOCHAT_OK, nanochat_session_close(NULL));
}

static void chat(void)
{
	static const char *const roles[] = {"system", "user"};
	static const char *const contents[] = {"be brief", "hello\0<|end|>"};
	static const size_t lengths[] = {8, 13};
	nanochat_generate_options o = with(0, 3);
	nanochat_session *session;
	nanochat_stream *stream;
	int32_t prompt[128], shorter[128], a[8], b[8];
	size_t n, m;

	IS(NANOCHAT_OK,
	   nanochat_chat_tokens(model, roles, contents, lengths, 2, "phi3", prompt, 128, &n, NULL));
	IS(NANOCHAT_OK,
	   nanochat_chat_tokens(model, roles, contents, NULL, 2, "phi3", shorter, 128, &m, NULL));
	CHECK(n == m + 8); /* without lengths the content ends with NUL */
	IS(NANOCHAT_OK, nanochat_chat_tokens(model, roles, contents, NULL, 2, NULL, NULL, 0, &m, NULL));
	CHECK(m > 0 && m != n);
	IS(NANOCHAT_OK, nanochat_stream_open_tokens(model, prompt, n, &o, &stream, NULL));
	CHECK(answer(stream, a) == 3);
	IS(NANOCHAT_OK, nanochat_session_open(model, &session, NULL));
	for (int i = 0; i < 3; i++) {
		IS(NANOCHAT_OK, nanochat_chat_open(model, i ? session : NULL, roles, contents, lengths, 2,
		                                   "phi3", &o, &stream, NULL));
		CHECK(answer(stream, b) == 3 && !memcmp(a, b, 3 * sizeof *a));
	}
	IS(NANOCHAT_OK, nanochat_session_close(session));
	IS(NANOCHAT_E_CLOSED,
	   nanochat_chat_open(model, session, roles, contents, lengths, 2, "phi3", &o, &stream, NULL));
	IS(NANOCHAT_E_INVALID,
	   nanochat_chat_open(model, NULL, roles, contents, lengths, 0, NULL, &o, &stream, NULL));
	IS(NANOCHAT_E_INVALID,
	   nanochat_chat_open(model, NULL, NULL, contents, lengths, 2, NULL, &o, &stream, NULL));
	IS(NANOCHAT_E_INVALID,
	   nanochat_chat_open(model, NULL, roles, NULL, lengths, 2, NULL, &o, &stream, NULL));
	IS(NANOCHAT_E_INVALID,
	   nanochat_chat_open(model, NULL, contents, roles, NULL, 2, NULL, &o, &stream, NULL));
	IS(NANOCHAT_E_INVALID,
	   nanochat_chat_open(model, NULL, roles, contents, NULL, 2, "telex", &o, &stream, NULL));
	IS(NANOCHAT_E_UNSUPPORTED,
	   nanochat_chat_open(model, NULL, roles, contents, NULL, 2, "llama3", &o, &stream, NULL));
	CHECK(!stream);
}

static void prompts(void)
{
	nanochat_generate_options o = with(0, 3);
	nanochat_stream *stream;
	int32_t ids[8] = {1, 2, VOCAB};

	IS(NANOCHAT_OK, nanochat_fim_open(model, "fn a() {", 8, "}", 1, &o, &stream, NULL));
	CHECK(answer(stream, ids) == 3);
	IS(NANOCHAT_E_INVALID, nanochat_fim_open(model, NULL, 8, "}", 1, &o, &stream, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_fim_open(model, "x", 1, NULL, 1, &o, &stream, NULL));
	ids[2] = VOCAB;
	IS(NANOCHAT_E_INVALID, nanochat_stream_open_tokens(model, ids, 3, &o, &stream, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_stream_open_tokens(model, NULL, 3, &o, &stream, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_stream_open_tokens(model, ids, SIZE_MAX, &o, &stream, NULL));
}

static void rows(void)
{
	nanochat_generate_options o =
		with(NANOCHAT_GENERATE_ECHO | NANOCHAT_GENERATE_LOGITS | NANOCHAT_GENERATE_LOGPROBS |
		         NANOCHAT_GENERATE_EMBEDDING | NANOCHAT_GENERATE_PROMPT_ONLY,
		     9);
	nanochat_stream *stream;
	nanochat_piece piece;
	char text[64];
	static float row[VOCAB], embedding[DIM];
	size_t n, seen = 0;

	o.top_logprobs = 1;
	IS(NANOCHAT_OK, nanochat_stream_open(model, "let x", 5, &o, &stream, NULL));
	nanochat_piece_init(&piece, sizeof piece);
	for (;;) {
		int32_t best;
		size_t one;

		IS(NANOCHAT_OK,
		   nanochat_stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &piece, NULL));
		IS(NANOCHAT_OK, nanochat_stream_logits(stream, row, VOCAB, &n, NULL));
		if (piece.finish)
			break;
		CHECK(piece.flags == NANOCHAT_PIECE_ECHO && piece.token >= 0);
		CHECK(n == (seen ? VOCAB : 0));
		if (seen++) {
			CHECK(piece.logprob < 0);
			IS(NANOCHAT_E_BUFFER_TOO_SMALL,
			   nanochat_stream_logits(stream, row, VOCAB - 1, &n, NULL));
			IS(NANOCHAT_OK, nanochat_stream_top(stream, &best, NULL, 1, &one, NULL));
			for (int i = 0; i < VOCAB; i++)
				CHECK(row[i] <= row[best]);
		}
	}
	CHECK(seen == 6 && n == 0); /* BOS and five letters */
	IS(NANOCHAT_OK, nanochat_stream_embedding(stream, embedding, DIM, &n, NULL));
	CHECK(n == DIM && embedding[0] != 0);
	IS(NANOCHAT_E_BUFFER_TOO_SMALL, nanochat_stream_embedding(stream, embedding, 1, &n, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_stream_embedding(stream, NULL, DIM, &n, NULL));
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	stream = open_stream(model, 1);
	IS(NANOCHAT_E_INVALID, nanochat_stream_embedding(stream, embedding, DIM, &n, NULL));
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
}

static void batch(void)
{
	static const char *const texts[] = {"a", "let b", "fn c() {", "", "use d;"};
	enum { N = sizeof texts / sizeof *texts };
	nanochat_generate_options o = with(0, 20);
	nanochat_stream *streams[N + 1];
	nanochat_piece piece;
	int32_t alone[N][32], beside[N][32];
	size_t counts[N] = {0}, i;
	char text[256];
	const char *wrong[] = {"a", NULL};

	for (i = 0; i < N; i++) {
		IS(NANOCHAT_OK,
		   nanochat_stream_open(model, texts[i], strlen(texts[i]), &o, &streams[0], NULL));
		CHECK(answer(streams[0], alone[i]) == 20);
	}
	IS(NANOCHAT_OK, nanochat_streams_open(model, texts, NULL, N, &o, streams + 1, NULL));
	streams[0] = NULL;
	nanochat_piece_init(&piece, sizeof piece);
	for (;;) {
		IS(NANOCHAT_OK, nanochat_streams_wait(streams, N + 1, NANOCHAT_FOREVER, &i, NULL));
		if (i == N + 1)
			break;
		IS(NANOCHAT_OK, nanochat_stream_next(streams[i], 0, text, sizeof text, &piece, NULL));
		if (piece.token >= 0)
			beside[i - 1][counts[i - 1]++] = piece.token;
	}
	for (i = 0; i < N; i++) {
		CHECK(counts[i] == 20 && !memcmp(alone[i], beside[i], sizeof alone[0][0] * 20));
		IS(NANOCHAT_OK, nanochat_stream_close(streams[i + 1]));
	}
	IS(NANOCHAT_E_CLOSED, nanochat_streams_wait(streams, N + 1, 0, &i, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_streams_wait(streams, 1, 0, &i, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_streams_wait(NULL, 1, 0, &i, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_streams_wait(streams, SIZE_MAX, 0, &i, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_streams_wait(streams, N + 1, 0, NULL, NULL));
	memset(streams, 0xee, sizeof streams);
	IS(NANOCHAT_E_INVALID, nanochat_streams_open(model, wrong, NULL, 2, &o, streams, NULL));
	CHECK(!streams[0] && !streams[1]);
	IS(NANOCHAT_E_INVALID, nanochat_streams_open(model, NULL, NULL, 2, &o, streams, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_streams_open(model, texts, NULL, 0, &o, streams, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_streams_open(model, texts, NULL, SIZE_MAX, &o, streams, NULL));
	IS(NANOCHAT_E_INVALID, nanochat_streams_open(model, texts, NULL, 2, &o, NULL, NULL));
}

int sessions(int argc, char **argv)
{
	CHECK(argc == 1);
	model = open_model(argv[0], 1);
	session();
	chat();
	prompts();
	rows();
	batch();
	IS(NANOCHAT_OK, nanochat_model_close(model));
	return 0;
}
