/*
 * nanochat.h: the C interface of nanochat, an engine for ternary language models.
 *
 *     nanochat_model *model;
 *     nanochat_stream *stream;
 *     nanochat_error *err;
 *     nanochat_piece piece;
 *     char text[256];
 *
 *     if (nanochat_model_open("model.gguf", NULL, &model, &err))
 *         fail(err);
 *     if (nanochat_stream_open(model, "fn main() {", 11, NULL, &stream, &err))
 *         fail(err);
 *     nanochat_piece_init(&piece, sizeof piece);
 *     do {
 *         if (nanochat_stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &piece, &err))
 *             fail(err);
 *         fwrite(text, 1, piece.length, stdout);
 *     } while (!piece.finish);
 *     nanochat_stream_close(stream);
 *     nanochat_model_close(model);
 *
 * THE CONTRACT
 *
 * Handles. The value of a handle is a number that is given out once and never
 *     again; it is looked up, not dereferenced. NULL, what never was a handle and a
 *     handle of another kind give NANOCHAT_E_INVALID, a closed one NANOCHAT_E_CLOSED;
 *     none of them is undefined behaviour. The pointer types are for the compiler.
 * Errors. Every function that can fail returns a status and takes `err`, which may be
 *     NULL. Otherwise *err is written by every call: with NULL on success, and with an
 *     error object that the caller frees by nanochat_error_free on failure. There is no
 *     "last error". On failure, handles to be returned are NULL and counts are 0, except
 *     with NANOCHAT_E_BUFFER_TOO_SMALL, where the count is what is needed.
 *     What is said of the errors of a function is what it may give besides these: wrong arguments
 *     and handles are E_INVALID, closed handles E_CLOSED, results that do not fit
 *     E_BUFFER_TOO_SMALL, a forked child E_FORKED, no memory for the text of an error E_NOMEM,
 *     and what should not happen E_INTERNAL.
 * Memory. What is passed in belongs to the caller and is copied before the call
 *     returns. Results go to buffers of the caller; besides handles and error objects
 *     there is nothing to free. Buffers must be as long as said: like any C library,
 *     this one believes pointers to memory.
 * Threads. Every function may be called from any thread at any time. A model and a session
 *     serve any number of threads. A stream and a job have one reader at a time: while a call
 *     of nanochat_stream_next, _top, _logits, _embedding, _stats, of nanochat_streams_wait
 *     or nanochat_job_next is in progress, another one gives NANOCHAT_E_BUSY.
 *     nanochat_stream_cancel, nanochat_job_cancel and every close work beside it.
 * Streams. Everything that generates is a stream, which is pulled: there are no callbacks.
 *     nanochat_stream_next waits as long as it is told, and NANOCHAT_E_TIMEOUT loses nothing.
 *     Generation goes on in threads of the library, up to 64 tokens ahead of the reader.
 * Sessions. A session is the text so far, and what was computed for it. It has one stream at a
 *     time: until that was read to its end or closed, another one gives NANOCHAT_E_BUSY. A token
 *     of an answer becomes part of the session when it is read.
 * Jobs. What takes long and is no stream is a job, which is pulled in the same way: its
 *     records are JSON objects, the last one is its result. It goes on whether or not anybody
 *     reads; a reader far behind is told what was dropped. Cancelling it may be done from any
 *     thread; closing it waits until it has ended.
 * Lifetime. A close ends the handle at once. What it stood for goes when nothing uses
 *     it any more: a closed model stays in memory until its sessions and streams are closed and
 *     the calls in progress have returned. The library itself stays loaded: dlclose() has
 *     no effect.
 * Results. The same model, prompt, options, seed and device give the same tokens on any number
 *     of threads, with any kernel, in a session or not, and beside any other streams.
 * Network. It is used by nanochat_download_open and nothing else, and not at all if the setting
 *     offline is 1. A file is not to be seen before its SHA-256 is the promised one. Nothing is
 *     reported to anybody.
 * Fork. In a child of fork() every function returns NANOCHAT_E_FORKED at once, those
 *     that cannot fail excepted; nothing hangs and nothing is freed. The child may
 *     exec(), exit(), or use the library in a process started otherwise (posix_spawn, a
 *     server process forked before the library was loaded). The parent is not affected.
 * Signals. The library installs no handlers of its own. The Go runtime in it
 *     handles SIGSEGV, SIGBUS, SIGFPE and SIGPIPE only where they arise in its own
 *     code and passes others to the handler that the host had when it loaded the library;
 *     it uses SIGURG between its own threads and restarts interrupted calls. Handlers of
 *     the host for other signals stay and run; they must be installed with SA_ONSTACK if
 *     they are installed later. No function here may be called from a signal handler.
 * Host. Nothing is printed, no locale, directory or environment variable is changed, and
 *     errno is as it was before the call. The variables that are read are those of nanochat_set,
 *     XDG_CACHE_HOME and HOME for the cache, HF_TOKEN for the hub, HTTPS_PROXY, NO_PROXY and
 *     SSL_CERT_FILE for downloads; only the last three must be set before the process starts.
 * Text. UTF-8 with an explicit length in bytes; NUL is a character like any other.
 *     Bytes that are not UTF-8 are taken as they are. Text that comes out of a stream
 *     is whole characters. Paths are bytes that end with NUL, as for open().
 * Versions. Symbols and fields are only added: a program keeps working with every later
 *     library of the same NANOCHAT_ABI_VERSION. Structures begin with their size, which
 *     the _init function sets. A structure of an older header is completed with defaults;
 *     in one of a newer header, what this library does not know must be zero.
 * Limits. Texts have at most NANOCHAT_MAX_TEXT bytes, those of one call together; lists of ids as
 *     many ids; a call takes at most 4,096 prompts or streams, 65,536 messages, 4,096 overrides,
 *     16 stops of 1,024 bytes. What is beyond is NANOCHAT_E_INVALID before it is read. A model
 *     computes batch streams at a time; 1,024 more wait, and the next one gives
 *     NANOCHAT_E_BUSY. A prompt is never cut: NANOCHAT_E_CONTEXT_FULL.
 */
#ifndef NANOCHAT_H
#define NANOCHAT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define NANOCHAT_API __attribute__((visibility("default")))
#else
#define NANOCHAT_API
#endif

/* ------------------------------------------------------------------ versions */

#define NANOCHAT_ABI_VERSION 1u
#define NANOCHAT_VERSION_STRING "0.1.0"

/* nanochat_abi_version is the NANOCHAT_ABI_VERSION of the library. Works in a forked child. */
NANOCHAT_API uint32_t nanochat_abi_version(void);

/* nanochat_version is the NANOCHAT_VERSION_STRING of the library. Works in a forked child. */
NANOCHAT_API const char *nanochat_version(void);

/* -------------------------------------------------------------------- errors */

typedef struct nanochat_model nanochat_model;
typedef struct nanochat_session nanochat_session;
typedef struct nanochat_stream nanochat_stream;
typedef struct nanochat_job nanochat_job;
typedef struct nanochat_error nanochat_error;

typedef int32_t nanochat_status;

#define NANOCHAT_OK 0
#define NANOCHAT_E_INVALID 1           /* an argument or option is wrong */
#define NANOCHAT_E_NOT_FOUND 2         /* there is no such file */
#define NANOCHAT_E_FORMAT 3            /* the file is damaged, or no model that runs here */
#define NANOCHAT_E_CHECKSUM 4          /* the file is not the one that was promised */
#define NANOCHAT_E_IO 5                /* the file cannot be read */
#define NANOCHAT_E_NOMEM 6             /* the system has no memory for it */
#define NANOCHAT_E_CANCELLED 7         /* the stream or job was cancelled */
#define NANOCHAT_E_TIMEOUT 8           /* nothing yet: call again (makes no error object) */
#define NANOCHAT_E_BUSY 9              /* it is in use, or too many streams wait */
#define NANOCHAT_E_CLOSED 10           /* the handle was closed */
#define NANOCHAT_E_BUFFER_TOO_SMALL 11 /* nothing was lost: call again with more room */
#define NANOCHAT_E_CONTEXT_FULL 12     /* the prompt does not fit */
#define NANOCHAT_E_FORKED 13           /* this process is a fork of the one that loaded it */
#define NANOCHAT_E_UNSUPPORTED 14      /* this model or file cannot do that */
#define NANOCHAT_E_OFFLINE 15          /* it needs the network, which is switched off */
#define NANOCHAT_E_DIVERGED 16         /* the training diverged */
#define NANOCHAT_E_NETWORK 17          /* a server cannot be reached, or refuses */
#define NANOCHAT_E_PLANNED 18          /* the model is not published yet */
#define NANOCHAT_E_INTERNAL 99         /* a defect of the library, which was contained */

/* nanochat_status_name is the name of a status, such as "E_INVALID"; "E_UNKNOWN" for other
 * numbers. Works in a forked child. */
NANOCHAT_API const char *nanochat_status_name(nanochat_status status);

/* nanochat_error_status is the status that came with err; NANOCHAT_OK for NULL. */
NANOCHAT_API nanochat_status nanochat_error_status(const nanochat_error *err);

/* nanochat_error_message says in one line of UTF-8 what is wrong and where; "" for NULL. It
 * stands until err is freed. */
NANOCHAT_API const char *nanochat_error_message(const nanochat_error *err);

/* nanochat_error_hint says what to do about it; "" where there is nothing to say. */
NANOCHAT_API const char *nanochat_error_hint(const nanochat_error *err);

/* nanochat_error_free frees err. NULL and what was freed already do nothing. */
NANOCHAT_API void nanochat_error_free(nanochat_error *err);

/* -------------------------------------------------------------------- system */

#define NANOCHAT_MAX_TEXT ((size_t)64 << 20)

/* nanochat_system_info writes a JSON object about the library and this machine: version,
 * abi_version, commit, go, c_compiler, system, kernels (best first), threads (used by
 * default), templates (of chats). More keys may come.
 *
 * Texts are returned in this way: *length is set to the number of bytes. If it is at
 * most capacity they stand in buffer, without NUL; otherwise buffer is not touched, and the
 * call fails with NANOCHAT_E_BUFFER_TOO_SMALL. With a NULL buffer and capacity 0 the
 * call only counts, and succeeds. */
NANOCHAT_API nanochat_status nanochat_system_info(char *buffer, size_t capacity, size_t *length,
                                                  nanochat_error **err);

/* nanochat_set changes a setting of this process. A setting stands in front of the environment
 * variable of its name, NANOCHAT_CACHE for cache: where neither is set there is a default, and
 * options of a call come before both. Variables are read by getenv() at every use. A
 * NULL value takes the setting back; "" is as if the variable were not set.
 *
 *     cache, home       the directory of downloaded models, or the one above it
 *     models            directories of models that came with the program, separated by ':'
 *     index             a file with the models that have names, in place of the built-in one
 *     endpoint, token   the hub or a mirror of it, and what to tell it
 *     offline           1: no network at all
 *     threads, kernel   for models and trainings that leave them open
 *     device            for models that leave it open: cpu, cuda or auto
 *     tune              off, auto or refresh: measure which kernel is fastest, and remember it
 *     log               debug, info, warn or error: the level of nanochat_log_open
 *     memory_limit      bytes that the garbage collector tries to stay within; at once
 *     gc_percent        how much garbage it lets grow, as GOGC; off: none; at once
 *
 * The last two have no variable and count for the memory of the Go runtime in the library; weights
 * and caches lie outside of it. Errors: E_INVALID. */
NANOCHAT_API nanochat_status nanochat_set(const char *key, const char *value, nanochat_error **err);

/* nanochat_get writes the value of a setting that counts, as nanochat_system_info says: what was
 * set, else that of the variable, else "". A token that is there reads "set".
 * Errors: E_INVALID. */
NANOCHAT_API nanochat_status nanochat_get(const char *key, char *buffer, size_t capacity,
                                          size_t *length, nanochat_error **err);

/* -------------------------------------------------------------------- models */

/* flags of nanochat_model_options */
#define NANOCHAT_MODEL_PIN 1u           /* bind the threads of the engine to processors */
#define NANOCHAT_MODEL_KV_INT8 2u       /* keep keys and values in 8 bits, not 16 */
#define NANOCHAT_MODEL_NO_HUGE_PAGES 4u /* use weights where the file is mapped, not a copy */

/* How a model is run. None of it but NANOCHAT_MODEL_KV_INT8 changes a token. */
typedef struct nanochat_model_options {
	uint32_t struct_size;
	uint32_t flags;     /* NANOCHAT_MODEL_* */
	uint32_t threads;   /* 0: NANOCHAT_THREADS, else the cores this process may use */
	uint32_t context;   /* positions of a stream, prompt and answer; 0: those of the model */
	uint32_t batch;     /* streams computed at the same time, more wait; 0: 8 */
	uint32_t speculate; /* tokens to guess ahead from the text so far; 0: none */
	const char *kernel; /* a name in nanochat_system_info; NULL: NANOCHAT_KERNEL, else the best */
	const char *device; /* cpu, cuda, or auto (a GPU that can be used, else the processor); NULL:
	                       NANOCHAT_DEVICE, else cpu */
} nanochat_model_options;

/* nanochat_model_options_init writes the defaults. size is sizeof *options. */
NANOCHAT_API void nanochat_model_options_init(nanochat_model_options *options, size_t size);

/* nanochat_model_open opens a model and starts its engine. name is the path of a model file
 * (GGUF), or the name of a model that came with the library or was downloaded, as in
 * nanochat_zoo_resolve; the network is not used. options may be NULL. The file must not be
 * changed while the model is open: write a new one and rename it.
 *
 * Errors: E_NOT_FOUND, E_PLANNED, E_IO, E_FORMAT (with place in the file), E_INVALID, E_NOMEM,
 * E_UNSUPPORTED (there is no GPU that can be used). */
NANOCHAT_API nanochat_status nanochat_model_open(const char *name,
                                                 const nanochat_model_options *options,
                                                 nanochat_model **model, nanochat_error **err);

/* nanochat_model_info writes a JSON object about the model: path, source (as in
 * nanochat_zoo_resolve), kernel, device, threads, context,
 * vocabulary (size, split, bos, adds_bos, stops), config (by the keys of configuration files),
 * params (number of weights by class), and what the file says: name, architecture, licence,
 * description, sha256 (of the tensors), file_bytes, weight_bytes, bits_per_weight, chat_template
 * (one of nanochat_system_info, or ""), fim, provenance. More keys may come. The text is returned
 * as nanochat_system_info says, and is always the same for one model. Errors: none of its own. */
NANOCHAT_API nanochat_status nanochat_model_info(nanochat_model *model, char *buffer,
                                                 size_t capacity, size_t *length,
                                                 nanochat_error **err);

/* nanochat_model_close ends the handle. Streams of the model go on. NULL does nothing. It
 * fails with E_CLOSED or E_INVALID where there is nothing to close. */
NANOCHAT_API nanochat_status nanochat_model_close(nanochat_model *model);

/* -------------------------------------------------------------------- tokens */

#define NANOCHAT_TOKENIZE_BOS 1u     /* begin with BOS, if the vocabulary has one */
#define NANOCHAT_TOKENIZE_PROMPT 2u  /* begin with BOS, if the vocabulary asks for it */
#define NANOCHAT_TOKENIZE_SPECIAL 4u /* the texts of control tokens become those tokens */
#define NANOCHAT_DETOKENIZE_PLAIN 1u /* leave control tokens out */

/* nanochat_tokenize writes the token ids of a text. *count is set to their number. If it
 * is more than capacity, ids is not touched, and the call fails with
 * E_BUFFER_TOO_SMALL. With NULL ids and capacity 0 the call only counts, and succeeds.
 * nanochat_stream_open reads its prompt with NANOCHAT_TOKENIZE_PROMPT. */
NANOCHAT_API nanochat_status nanochat_tokenize(nanochat_model *model, const char *text,
                                               size_t length, uint32_t flags, int32_t *ids,
                                               size_t capacity, size_t *count,
                                               nanochat_error **err);

/* nanochat_detokenize writes the bytes that token ids stand for, in the way of
 * nanochat_system_info. Those of a text give back that text, byte for byte; a part of
 * them may begin or end within a character. Errors: E_INVALID (an id is no
 * token of the model). */
NANOCHAT_API nanochat_status nanochat_detokenize(nanochat_model *model, const int32_t *ids,
                                                 size_t count, uint32_t flags, char *buffer,
                                                 size_t capacity, size_t *length,
                                                 nanochat_error **err);

/* ---------------------------------------------------------------- generation */

/* flags of nanochat_generate_options */
#define NANOCHAT_GENERATE_IGNORE_END 1u   /* go on after the tokens that end a text */
#define NANOCHAT_GENERATE_SPECIAL 2u      /* read the prompt with NANOCHAT_TOKENIZE_SPECIAL */
#define NANOCHAT_GENERATE_LOGPROBS 4u     /* give log probabilities */
#define NANOCHAT_GENERATE_ECHO 8u         /* begin with the tokens of the prompt */
#define NANOCHAT_GENERATE_LOGITS 16u      /* keep the logits, see nanochat_stream_logits */
#define NANOCHAT_GENERATE_EMBEDDING 32u   /* see nanochat_stream_embedding */
#define NANOCHAT_GENERATE_PROMPT_ONLY 64u /* read the prompt and generate nothing */

/* What to generate. The defaults are those of the command `nanochat generate`: 200 tokens, each
 * the most likely one. */
typedef struct nanochat_generate_options {
	uint32_t struct_size;
	uint32_t flags;           /* NANOCHAT_GENERATE_* */
	uint32_t max_tokens;      /* default 200; 0: as many as the context holds */
	uint32_t top_k;           /* choose among this many most likely tokens; 0: all */
	double temperature;       /* divides the logits; 0: the most likely token */
	double top_p;             /* choose among the likeliest that reach this share; 1: all */
	double min_p;             /* ... at least this times as likely as the likeliest; 0: all */
	double repeat_penalty;    /* divides the logits of tokens seen before; 1: off */
	double presence_penalty;  /* subtracted from the logits of tokens generated before */
	double frequency_penalty; /* ... as often as a token was generated */
	uint64_t seed;            /* the same seed gives the same text */
	uint32_t penalty_window;  /* last tokens that penalties see; 0: all */
	uint32_t top_logprobs;    /* most likely tokens to report, see nanochat_stream_top */

	const char *const *stops;   /* texts that end the answer without being part of it */
	const size_t *stop_lengths; /* their lengths in bytes; NULL: they end with NUL */
	size_t stop_count;          /* at most 16, of 1 to 1024 bytes */

	const int32_t *bias_ids;  /* tokens whose logits are changed */
	const float *bias_values; /* what is added to them; -INFINITY bans a token */
	size_t bias_count;
} nanochat_generate_options;

/* nanochat_generate_options_init writes the defaults. size is sizeof *options. */
NANOCHAT_API void nanochat_generate_options_init(nanochat_generate_options *options, size_t size);

/* Why an answer ended; 0 while it has not. */
#define NANOCHAT_FINISH_STOP 1      /* a token that ends a text, or one of the stops */
#define NANOCHAT_FINISH_LENGTH 2    /* max_tokens are generated, or the context is full */
#define NANOCHAT_FINISH_CANCELLED 3 /* it was cancelled */
#define NANOCHAT_FINISH_ERROR 4     /* it failed */

/* nanochat_finish_name is "stop", "length", "cancelled", "error", or "" for other numbers. Works
 * in a forked child. */
NANOCHAT_API const char *nanochat_finish_name(int32_t finish);

/* flags of nanochat_piece */
#define NANOCHAT_PIECE_ECHO 1u /* a token of the prompt */

/* One step of an answer. */
typedef struct nanochat_piece {
	uint32_t struct_size;
	int32_t token;   /* its id, or -1: the end, or text that was held back until the end */
	int32_t finish;  /* NANOCHAT_FINISH_*: the answer is over; 0: there is more */
	float logprob;   /* natural logarithm of the token's probability under the model */
	uint64_t length; /* bytes of text */
	uint32_t flags;  /* NANOCHAT_PIECE_* */
	uint32_t reserved;
} nanochat_piece;

/* nanochat_piece_init makes a structure ready for results. size is sizeof *piece. */
NANOCHAT_API void nanochat_piece_init(nanochat_piece *piece, size_t size);

/* How an answer went so far; complete once it has ended. */
typedef struct nanochat_stats {
	uint32_t struct_size;
	int32_t finish;            /* NANOCHAT_FINISH_* */
	uint64_t prompt_tokens;    /* tokens of the prompt */
	uint64_t cached_tokens;    /* of these, tokens that were not computed again */
	uint64_t generated_tokens; /* tokens generated; the reader may be behind */
	uint64_t drafted_tokens;   /* tokens guessed ahead */
	uint64_t accepted_tokens;  /* of these, right ones */
	uint64_t queued_ns;        /* time until the first step */
	uint64_t prefill_ns;       /* from there to the first token */
	uint64_t decode_ns;        /* from there to the end */
} nanochat_stats;

/* nanochat_stats_init makes a structure ready for results. size is sizeof *stats. */
NANOCHAT_API void nanochat_stats_init(nanochat_stats *stats, size_t size);

/* nanochat_stream_open queues the continuation of a prompt and returns at once.
 * Generation runs ahead of the reader by up to 64 tokens. options may be NULL.
 *
 * Errors: E_CONTEXT_FULL (with both counts), E_INVALID, E_BUSY (too many streams wait). */
NANOCHAT_API nanochat_status nanochat_stream_open(nanochat_model *model, const char *prompt,
                                                  size_t length,
                                                  const nanochat_generate_options *options,
                                                  nanochat_stream **stream, nanochat_error **err);

/* nanochat_stream_open_tokens is nanochat_stream_open for a prompt of token ids.
 * Errors: also E_INVALID for an id that is no token of the model. */
NANOCHAT_API nanochat_status nanochat_stream_open_tokens(nanochat_model *model, const int32_t *ids,
                                                         size_t count,
                                                         const nanochat_generate_options *options,
                                                         nanochat_stream **stream,
                                                         nanochat_error **err);

/* nanochat_fim_open is nanochat_stream_open for the text that belongs between two others.
 * Errors: also E_UNSUPPORTED (the vocabulary has no tokens for it). */
NANOCHAT_API nanochat_status nanochat_fim_open(nanochat_model *model, const char *prefix,
                                               size_t prefix_length, const char *suffix,
                                               size_t suffix_length,
                                               const nanochat_generate_options *options,
                                               nanochat_stream **stream, nanochat_error **err);

/* nanochat_chat_open is nanochat_stream_open for the next answer of a conversation of count
 * messages: roles ("system", "user", "assistant"; they end with NUL) and contents. content_lengths
 * may be NULL: then contents end with NUL. template_name is one of "templates" in
 * nanochat_system_info; NULL: the model's own, or "plain" (the contents as text) where it has
 * none. Control tokens come from the template; what looks like one in a content stays text.
 * Texts by which the template ends an answer are added to the stops. If the last message is the
 * assistant's, the answer goes on with it.
 *
 * session may be NULL. With a session its context becomes the whole conversation, and what is the
 * same as before is not computed again.
 *
 * Errors: also E_UNSUPPORTED (the model does not have the template's tokens, or its own template
 * is not known), E_BUSY (the session has a stream). */
NANOCHAT_API nanochat_status nanochat_chat_open(nanochat_model *model, nanochat_session *session,
                                                const char *const *roles,
                                                const char *const *contents,
                                                const size_t *content_lengths, size_t count,
                                                const char *template_name,
                                                const nanochat_generate_options *options,
                                                nanochat_stream **stream, nanochat_error **err);

/* nanochat_chat_tokens writes the ids of the prompt that nanochat_chat_open makes of the same
 * arguments, in the way of nanochat_tokenize. Errors: E_INVALID, E_UNSUPPORTED. */
NANOCHAT_API nanochat_status nanochat_chat_tokens(nanochat_model *model, const char *const *roles,
                                                  const char *const *contents,
                                                  const size_t *content_lengths, size_t count,
                                                  const char *template_name, int32_t *ids,
                                                  size_t capacity, size_t *id_count,
                                                  nanochat_error **err);

#define NANOCHAT_FOREVER 0xFFFFFFFFu

/* nanochat_stream_next waits up to timeout_ms for the next token. It writes the text that
 * the token completed to buffer, whole characters without a NUL after them, and the rest to *piece,
 * which nanochat_piece_init has made ready. The text is empty while a character, or what may become
 * a stop text, is not complete. piece->finish is set with the last piece; after that every call
 * gives it again, without text.
 *
 * Errors: E_TIMEOUT (nothing came; call again), E_BUFFER_TOO_SMALL (piece->length is what
 * this piece needs; call again), E_CANCELLED, E_CLOSED (by another thread, meanwhile), E_BUSY,
 * E_INVALID, E_FORMAT (the weights give no numbers). */
NANOCHAT_API nanochat_status nanochat_stream_next(nanochat_stream *stream, uint32_t timeout_ms,
                                                  char *buffer, size_t capacity,
                                                  nanochat_piece *piece, nanochat_error **err);

/* nanochat_stream_top writes the top_logprobs most likely tokens at the place of the token that
 * nanochat_stream_next gave last, most likely first, with the logarithms of their
 * probabilities. *count is set to their number, as in nanochat_tokenize; logprobs may be NULL.
 * Errors: E_BUSY. */
NANOCHAT_API nanochat_status nanochat_stream_top(nanochat_stream *stream, int32_t *ids,
                                                 float *logprobs, size_t capacity, size_t *count,
                                                 nanochat_error **err);

/* nanochat_stream_logits writes the logits of the whole vocabulary that the piece given last was
 * chosen from, or that predicted it, if it is of the prompt: as the model gave them, before biases
 * and penalties. *count is set as in nanochat_tokenize; it is 0 for the first token of the prompt
 * and without NANOCHAT_GENERATE_LOGITS. Errors: E_BUSY. */
NANOCHAT_API nanochat_status nanochat_stream_logits(nanochat_stream *stream, float *logits,
                                                    size_t capacity, size_t *count,
                                                    nanochat_error **err);

/* nanochat_stream_embedding writes the embedding of the prompt: the mean over its tokens of what
 * the last layer gives, normalised as for the head. *count is set as in nanochat_tokenize; it is 0
 * until the prompt is computed, which the first piece that is not of the prompt, or the end, tells.
 * Errors: E_INVALID (opened without NANOCHAT_GENERATE_EMBEDDING), E_BUSY. */
NANOCHAT_API nanochat_status nanochat_stream_embedding(nanochat_stream *stream, float *values,
                                                       size_t capacity, size_t *count,
                                                       nanochat_error **err);

/* nanochat_stream_stats writes *stats, which nanochat_stats_init has made ready. Errors: E_BUSY. */
NANOCHAT_API nanochat_status nanochat_stream_stats(nanochat_stream *stream, nanochat_stats *stats,
                                                   nanochat_error **err);

/* nanochat_stream_cancel ends generation and returns at once. The reader, also one that
 * waits, gets E_CANCELLED; an answer whose end was read stays as it is. Errors: none of its own. */
NANOCHAT_API nanochat_status nanochat_stream_cancel(nanochat_stream *stream);

/* nanochat_stream_close ends the handle, and generation. It waits for the step that is being
 * computed. NULL does nothing. It fails with E_CLOSED or E_INVALID where there is nothing
 * to close. */
NANOCHAT_API nanochat_status nanochat_stream_close(nanochat_stream *stream);

/* nanochat_streams_open is nanochat_stream_open for count prompts with the same options: it opens
 * all of them, or none. lengths may be NULL: then prompts end with NUL. streams takes count
 * handles, each to be closed by itself. Errors: those of
 * nanochat_stream_open. */
NANOCHAT_API nanochat_status nanochat_streams_open(nanochat_model *model,
                                                   const char *const *prompts,
                                                   const size_t *lengths, size_t count,
                                                   const nanochat_generate_options *options,
                                                   nanochat_stream **streams, nanochat_error **err);

/* nanochat_streams_wait waits up to timeout_ms until one of count streams has something to read,
 * and sets *index to its place: nanochat_stream_next will not wait there. Streams whose end, or
 * error, was read are passed over, as are NULL handles; once that is so for all, *index is count.
 * While it waits it counts as the reader of every stream.
 *
 * Errors: E_TIMEOUT, E_BUSY, E_CLOSED, E_INVALID (also where all handles are NULL). */
NANOCHAT_API nanochat_status nanochat_streams_wait(nanochat_stream *const *streams, size_t count,
                                                   uint32_t timeout_ms, size_t *index,
                                                   nanochat_error **err);

/* ------------------------------------------------------------------ sessions */

/* nanochat_session_open makes a session: a text that grows, of which everything that was computed
 * is kept. It keeps the model. Errors: E_NOMEM, and those of a handle. */
NANOCHAT_API nanochat_status nanochat_session_open(nanochat_model *model,
                                                   nanochat_session **session,
                                                   nanochat_error **err);

/* nanochat_session_stream is nanochat_stream_open for text that follows everything so far. The
 * answer becomes part of the session as it is read. A session has one stream at a time.
 * Errors: also E_BUSY (the last stream was neither read to its end nor closed). */
NANOCHAT_API nanochat_status nanochat_session_stream(nanochat_session *session, const char *text,
                                                     size_t length,
                                                     const nanochat_generate_options *options,
                                                     nanochat_stream **stream,
                                                     nanochat_error **err);

/* nanochat_session_tokens writes the ids of everything so far, in the way of nanochat_tokenize.
 * Errors: none of its own. */
NANOCHAT_API nanochat_status nanochat_session_tokens(nanochat_session *session, int32_t *ids,
                                                     size_t capacity, size_t *count,
                                                     nanochat_error **err);

/* nanochat_session_truncate keeps the first keep tokens, all if there are fewer. Errors: E_BUSY. */
NANOCHAT_API nanochat_status nanochat_session_truncate(nanochat_session *session, size_t keep,
                                                       nanochat_error **err);

/* nanochat_session_close ends the handle. A stream of it goes on. NULL does nothing. It fails with
 * E_CLOSED or E_INVALID where there is nothing to close. */
NANOCHAT_API nanochat_status nanochat_session_close(nanochat_session *session);

/* ----------------------------------------------------------------------- zoo */

/* flags of nanochat_zoo_options */
#define NANOCHAT_ZOO_FORCE 1u   /* download what is there already */
#define NANOCHAT_ZOO_OFFLINE 2u /* no network for this call */

/* Where models are. NULL is what the settings say. */
typedef struct nanochat_zoo_options {
	uint32_t struct_size;
	uint32_t flags;       /* NANOCHAT_ZOO_* */
	const char *cache;    /* the directory of downloaded models */
	const char *endpoint; /* the hub, or a mirror of it */
	const char *token;    /* what to tell it; nobody else gets it */
	const char *url;      /* for nanochat_download_open: where the file is ... */
	const char *sha256;   /* ... and its SHA-256, 64 hexadecimal digits */
} nanochat_zoo_options;

/* nanochat_zoo_options_init writes the defaults. size is sizeof *options. */
NANOCHAT_API void nanochat_zoo_options_init(nanochat_zoo_options *options, size_t size);

/* nanochat_zoo_list writes a JSON object: index (when it was made), cache (the directory, "" if
 * there is none) and models, each with name, revision, state and what is known of size, bytes (on
 * this machine), sha256, licence, description, path, instead. The state is bundled, cached,
 * partial (a download was interrupted), available (for download), planned or missing (it should
 * have come with the library). It needs no network. options may be NULL. The text is
 * returned as nanochat_system_info says. Errors: E_INVALID. */
NANOCHAT_API nanochat_status nanochat_zoo_list(const nanochat_zoo_options *options, char *buffer,
                                               size_t capacity, size_t *length,
                                               nanochat_error **err);

/* nanochat_zoo_resolve finds the file of a model on this machine, without the network. name is a
 * path or file:// URL, NAME or NAME@REVISION of the list, or hub:OWNER/REPO/FILE.gguf@REVISION;
 * it is looked up in this order: path, models that came with the library, cache. It writes
 * a JSON object with path, source (path, bundled, cache), size, and, where they are known, name,
 * revision and sha256.
 *
 * Errors: E_NOT_FOUND (with the name most like it; also where it was not downloaded), E_PLANNED,
 * E_INVALID. */
NANOCHAT_API nanochat_status nanochat_zoo_resolve(const char *name,
                                                  const nanochat_zoo_options *options, char *buffer,
                                                  size_t capacity, size_t *length,
                                                  nanochat_error **err);

/* nanochat_zoo_remove deletes a downloaded model, and the rest of an interrupted download. What
 * came with the library stays. *freed is set to the bytes; it may be NULL.
 *
 * Errors: E_NOT_FOUND, E_BUSY (another process downloads it), E_IO, E_INVALID. */
NANOCHAT_API nanochat_status nanochat_zoo_remove(const char *name,
                                                 const nanochat_zoo_options *options,
                                                 uint64_t *freed, nanochat_error **err);

/* ---------------------------------------------------------------------- jobs */

/* nanochat_job_next waits up to timeout_ms for the next record of a job, a JSON object on one
 * line, and writes it to buffer, without NUL. *length is set to its bytes. Every record has a
 * "type"; more types and keys may come. *finish is 0 until the last record, the result:
 * with that it is NANOCHAT_FINISH_STOP, or NANOCHAT_FINISH_CANCELLED for what a cancelled
 * training has come to. After that every call gives it again, without a record. A job that
 * fails has no result: every further call gives its error.
 *
 * Errors: E_TIMEOUT (nothing came; call again), E_BUFFER_TOO_SMALL (*length is what the record
 * needs; call again), E_CANCELLED, E_CLOSED (by another thread, meanwhile), E_BUSY, E_INVALID,
 * and those of the job. */
NANOCHAT_API nanochat_status nanochat_job_next(nanochat_job *job, uint32_t timeout_ms, char *buffer,
                                               size_t capacity, size_t *length, int32_t *finish,
                                               nanochat_error **err);

/* nanochat_job_cancel ends a job and returns at once. The reader, also one that waits, gets
 * E_CANCELLED, that of a training its result: it gives up the step at hand and saves a checkpoint
 * first. Errors: none of its own. */
NANOCHAT_API nanochat_status nanochat_job_cancel(nanochat_job *job);

/* nanochat_job_close ends the handle, and the job: it cancels it and waits for its end, that of a
 * training until its checkpoint is saved. NULL does nothing. It fails with E_CLOSED or
 * E_INVALID where there is nothing to close. */
NANOCHAT_API nanochat_status nanochat_job_close(nanochat_job *job);

/* nanochat_download_open starts to download a model: what nanochat_zoo_resolve finds is the result
 * at once. With url and sha256 it takes the file from there and keeps it as name. What was
 * interrupted goes on where it stopped; nothing is to be seen before its SHA-256 is right.
 * options may be NULL.
 *
 *     {"type":"progress","model":NAME,"state":STATE,"done":BYTES,"total":BYTES}
 *     {"type":"result","name":...,"revision":...,"path":...,"source":...,"size":...,"sha256":...}
 *
 * STATE is waiting (for another process that downloads the same), checking (what was downloaded
 * before) or downloading; total is 0 while it is not known. A slow reader gets only the newest
 * progress.
 *
 * Errors of the job: E_NOT_FOUND, E_PLANNED, E_OFFLINE, E_NETWORK, E_CHECKSUM (also where nobody
 * gives a SHA-256), E_BUSY, E_IO, E_INVALID. */
NANOCHAT_API nanochat_status nanochat_download_open(const char *name,
                                                    const nanochat_zoo_options *options,
                                                    nanochat_job **job, nanochat_error **err);

/* nanochat_verify_open starts to read a model's file and compare it with its SHA-256: what
 * nanochat_zoo_resolve finds by a name with that of the name ("verified":"file"), a path with the
 * sums that nanochat writes into its files ("verified":"tensors"). The records are those of
 * nanochat_download_open.
 *
 * Errors: those of nanochat_zoo_resolve; of the job E_CHECKSUM, E_UNSUPPORTED (the file has no
 * sums), E_FORMAT, E_IO. */
NANOCHAT_API nanochat_status nanochat_verify_open(const char *name,
                                                  const nanochat_zoo_options *options,
                                                  nanochat_job **job, nanochat_error **err);

/* nanochat_train_open reads a configuration (the path of a .toml file, then count overrides such as
 * "train.steps=1000") and starts its training. resume is "auto" (NULL: go on from the
 * newest checkpoint of the run, if there is one), "none" or the path of a checkpoint.
 *
 *     {"type":"step","out":DIR,"steps":N,"left_s":SECONDS, and all of a line of metrics.jsonl}
 *     {"type":"log","text":"a line for people"}
 *     {"type":"result","out":DIR,"steps":N,"tokens":N,"seconds":S,"model":PATH,...}
 *
 * A reader that is more than 16,384 records behind gets {"type":"dropped","records":N} in place of
 * the oldest; DIR/metrics.jsonl has them all.
 *
 * Errors: E_INVALID (configuration), E_NOT_FOUND, E_IO; of the job also E_FORMAT (data or
 * checkpoint), E_NOMEM, E_DIVERGED. */
NANOCHAT_API nanochat_status nanochat_train_open(const char *config, const char *const *overrides,
                                                 size_t count, const char *resume,
                                                 nanochat_job **job, nanochat_error **err);

/* nanochat_log_open starts to collect what the library does: records of the form
 * {"type":"log","time":...,"level":"INFO","msg":...,...}. level is debug, info, warn or error;
 * NULL: the setting log, else info. Such a job has no result and ends with its close. Nothing is
 * collected before, and records are dropped as in nanochat_train_open. Errors: E_INVALID. */
NANOCHAT_API nanochat_status nanochat_log_open(const char *level, nanochat_job **job,
                                               nanochat_error **err);

#ifdef __cplusplus
}
#endif

#endif
