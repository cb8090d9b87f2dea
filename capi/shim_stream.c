// The functions of nanochat.h that generate; see shim.c.

#include "shim.h"

#include <string.h>

// fill writes a result to a structure of any version, which keeps its size.
static void fill(void *to, size_t size, const void *from, size_t known)
{
	memcpy((char *)to + sizeof(uint32_t), (const char *)from + sizeof(uint32_t),
	       (size < known ? size : known) - sizeof(uint32_t));
}

// The sizes that structures had in the first version of the header.
#define GENERATE_OPTIONS_FIRST 128
#define PIECE_FIRST 32
#define STATS_FIRST 72

_Static_assert(sizeof(nanochat_generate_options) >= GENERATE_OPTIONS_FIRST,
               "fields are only added");
_Static_assert(sizeof(nanochat_piece) >= PIECE_FIRST, "fields are only added");
_Static_assert(sizeof(nanochat_stats) >= STATS_FIRST, "fields are only added");

static const nanochat_generate_options generate_defaults = {
	.struct_size = sizeof generate_defaults,
	.max_tokens = 200,
	.top_p = 1,
	.repeat_penalty = 1,
};
static const nanochat_piece piece_defaults = {.struct_size = sizeof piece_defaults, .token = -1};
static const nanochat_stats stats_defaults = {.struct_size = sizeof stats_defaults};

void nanochat_generate_options_init(nanochat_generate_options *options, size_t size)
{
	ncInit(options, size, &generate_defaults, sizeof generate_defaults);
}

void nanochat_piece_init(nanochat_piece *piece, size_t size)
{
	ncInit(piece, size, &piece_defaults, sizeof piece_defaults);
}

void nanochat_stats_init(nanochat_stats *stats, size_t size)
{
	ncInit(stats, size, &stats_defaults, sizeof stats_defaults);
}

// generate_options completes the options of a caller. It is false, with the call ended,
// where they are wrong.
static int generate_options(const struct call *c, const nanochat_generate_options *from,
                            nanochat_generate_options *to, nanochat_status *status)
{
	size_t size;

	*to = generate_defaults;
	if (!from)
		return 1;
	if (!(size = ncSizeOf(from, GENERATE_OPTIONS_FIRST)))
		*status = ncInvalid(c, "struct_size of the generate options is wrong",
		                    "call nanochat_generate_options_init first");
	else if (!ncComplete(to, sizeof *to, from, size))
		*status = ncInvalid(c, ncUnknownField, ncUnknownHint);
	else
		return 1;
	return 0;
}

// begin begins a call that opens a stream: no handle yet, the options completed. It is false,
// with the call ended, where that cannot be.
static int begin(struct call *c, nanochat_error **err, nanochat_stream **stream,
                 const nanochat_generate_options *from, nanochat_generate_options *to,
                 nanochat_status *status)
{
	*status = NANOCHAT_E_FORKED;
	if (!ncEnter(c, err))
		return 0;
	if (stream)
		*stream = NULL;
	return generate_options(c, from, to, status);
}

nanochat_status nanochat_stream_open(nanochat_model *model, const char *prompt, size_t length,
                                     const nanochat_generate_options *options,
                                     nanochat_stream **stream, nanochat_error **err)
{
	struct call c;
	nanochat_generate_options o;
	nanochat_status status;

	if (!begin(&c, err, stream, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoStreamOpen((uintptr_t)model, (char *)prompt, length, &o,
	                                  (uintptr_t *)stream, c.out));
}

nanochat_status nanochat_stream_open_tokens(nanochat_model *model, const int32_t *ids, size_t count,
                                            const nanochat_generate_options *options,
                                            nanochat_stream **stream, nanochat_error **err)
{
	struct call c;
	nanochat_generate_options o;
	nanochat_status status;

	if (!begin(&c, err, stream, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoStreamOpenTokens((uintptr_t)model, (int32_t *)ids, count, &o,
	                                        (uintptr_t *)stream, c.out));
}

nanochat_status nanochat_fim_open(nanochat_model *model, const char *prefix, size_t prefix_length,
                                  const char *suffix, size_t suffix_length,
                                  const nanochat_generate_options *options,
                                  nanochat_stream **stream, nanochat_error **err)
{
	struct call c;
	nanochat_generate_options o;
	nanochat_status status;

	if (!begin(&c, err, stream, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoFIMOpen((uintptr_t)model, (char *)prefix, prefix_length, (char *)suffix,
	                               suffix_length, &o, (uintptr_t *)stream, c.out));
}

nanochat_status nanochat_chat_open(nanochat_model *model, nanochat_session *session,
                                   const char *const *roles, const char *const *contents,
                                   const size_t *content_lengths, size_t count,
                                   const char *template_name,
                                   const nanochat_generate_options *options,
                                   nanochat_stream **stream, nanochat_error **err)
{
	struct call c;
	nanochat_generate_options o;
	nanochat_status status;

	if (!begin(&c, err, stream, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoChatOpen((uintptr_t)model, (uintptr_t)session, (char **)roles,
	                                (char **)contents, (size_t *)content_lengths, count,
	                                (char *)template_name, &o, (uintptr_t *)stream, c.out));
}

nanochat_status nanochat_session_stream(nanochat_session *session, const char *text, size_t length,
                                        const nanochat_generate_options *options,
                                        nanochat_stream **stream, nanochat_error **err)
{
	struct call c;
	nanochat_generate_options o;
	nanochat_status status;

	if (!begin(&c, err, stream, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoSessionStream((uintptr_t)session, (char *)text, length, &o,
	                                     (uintptr_t *)stream, c.out));
}

nanochat_status nanochat_chat_tokens(nanochat_model *model, const char *const *roles,
                                     const char *const *contents, const size_t *content_lengths,
                                     size_t count, const char *template_name, int32_t *ids,
                                     size_t capacity, size_t *id_count, nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (id_count)
		*id_count = 0;
	return ncLeave(&c, ncgoChatTokens((uintptr_t)model, (char **)roles, (char **)contents,
	                                  (size_t *)content_lengths, count, (char *)template_name, ids,
	                                  capacity, id_count, c.out));
}

nanochat_status nanochat_session_open(nanochat_model *model, nanochat_session **session,
                                      nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (session)
		*session = NULL;
	return ncLeave(&c, ncgoSessionOpen((uintptr_t)model, (uintptr_t *)session, c.out));
}

nanochat_status nanochat_session_tokens(nanochat_session *session, int32_t *ids, size_t capacity,
                                        size_t *count, nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (count)
		*count = 0;
	return ncLeave(&c, ncgoSessionTokens((uintptr_t)session, ids, capacity, count, c.out));
}

nanochat_status nanochat_session_truncate(nanochat_session *session, size_t keep,
                                          nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoSessionTruncate((uintptr_t)session, keep, c.out));
}

nanochat_status nanochat_session_close(nanochat_session *session)
{
	struct call c;

	if (!ncEnter(&c, NULL))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoSessionClose((uintptr_t)session));
}

nanochat_status nanochat_streams_open(nanochat_model *model, const char *const *prompts,
                                      const size_t *lengths, size_t count,
                                      const nanochat_generate_options *options,
                                      nanochat_stream **streams, nanochat_error **err)
{
	struct call c;
	nanochat_generate_options o;
	nanochat_status status;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (!generate_options(&c, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoStreamsOpen((uintptr_t)model, (char **)prompts, (size_t *)lengths, count,
	                                   &o, (uintptr_t *)streams, c.out));
}

nanochat_status nanochat_streams_wait(nanochat_stream *const *streams, size_t count,
                                      uint32_t timeout_ms, size_t *index, nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (index)
		*index = 0;
	return ncLeave(&c, ncgoStreamsWait((uintptr_t *)streams, count, timeout_ms, index, c.out));
}

nanochat_status nanochat_stream_logits(nanochat_stream *stream, float *logits, size_t capacity,
                                       size_t *count, nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (count)
		*count = 0;
	return ncLeave(&c, ncgoStreamLogits((uintptr_t)stream, logits, capacity, count, c.out));
}

nanochat_status nanochat_stream_embedding(nanochat_stream *stream, float *values, size_t capacity,
                                          size_t *count, nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (count)
		*count = 0;
	return ncLeave(&c, ncgoStreamEmbedding((uintptr_t)stream, values, capacity, count, c.out));
}

nanochat_status nanochat_stream_next(nanochat_stream *stream, uint32_t timeout_ms, char *buffer,
                                     size_t capacity, nanochat_piece *piece, nanochat_error **err)
{
	struct call c;
	nanochat_piece p = piece_defaults;
	nanochat_status status;
	size_t size;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (!piece)
		return ncInvalid(&c, "piece is NULL", "");
	if (!(size = ncSizeOf(piece, PIECE_FIRST)))
		return ncInvalid(&c, "struct_size of the piece is wrong", "call nanochat_piece_init first");
	status = ncgoStreamNext((uintptr_t)stream, timeout_ms, buffer, capacity, &p, c.out);
	fill(piece, size, &p, sizeof p);
	return ncLeave(&c, status);
}

nanochat_status nanochat_stream_top(nanochat_stream *stream, int32_t *ids, float *logprobs,
                                    size_t capacity, size_t *count, nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoStreamTop((uintptr_t)stream, ids, logprobs, capacity, count, c.out));
}

nanochat_status nanochat_stream_stats(nanochat_stream *stream, nanochat_stats *stats,
                                      nanochat_error **err)
{
	struct call c;
	nanochat_stats s = stats_defaults;
	nanochat_status status;
	size_t size;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (!stats)
		return ncInvalid(&c, "stats is NULL", "");
	if (!(size = ncSizeOf(stats, STATS_FIRST)))
		return ncInvalid(&c, "struct_size of the stats is wrong", "call nanochat_stats_init first");
	status = ncgoStreamStats((uintptr_t)stream, &s, c.out);
	fill(stats, size, &s, sizeof s);
	return ncLeave(&c, status);
}

nanochat_status nanochat_stream_cancel(nanochat_stream *stream)
{
	struct call c;

	if (!ncEnter(&c, NULL))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoStreamCancel((uintptr_t)stream));
}

nanochat_status nanochat_stream_close(nanochat_stream *stream)
{
	struct call c;

	if (!ncEnter(&c, NULL))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoStreamClose((uintptr_t)stream));
}
