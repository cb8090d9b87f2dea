/*
 * generate MODEL PROMPT [MAX_TOKENS [TEMPERATURE [SEED]]]: prints the continuation of a
 * prompt as it comes, and its speed on standard error.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nanochat.h>

/* report prints what went wrong and what to do about it; returns the exit status. */
static int report(nanochat_error *err)
{
	const char *hint = nanochat_error_hint(err);

	fprintf(stderr, "error: %s\n", nanochat_error_message(err));
	if (*hint)
		fprintf(stderr, "hint: %s\n", hint);
	nanochat_error_free(err);
	return EXIT_FAILURE;
}

static int print_answer(nanochat_stream *stream)
{
	nanochat_error *err = NULL;
	nanochat_piece piece;
	nanochat_stats stats;
	char text[4096];

	nanochat_piece_init(&piece, sizeof piece);
	do {
		if (nanochat_stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &piece, &err))
			return report(err);
		fwrite(text, 1, (size_t)piece.length, stdout);
		fflush(stdout);
	} while (!piece.finish);
	putchar('\n');

	nanochat_stats_init(&stats, sizeof stats);
	if (nanochat_stream_stats(stream, &stats, &err))
		return report(err);
	fprintf(stderr, "%llu tokens in the prompt, %llu generated in %.1f ms; %s\n",
	        (unsigned long long)stats.prompt_tokens, (unsigned long long)stats.generated_tokens,
	        (double)(stats.prefill_ns + stats.decode_ns) / 1e6, nanochat_finish_name(piece.finish));
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	nanochat_generate_options options;
	nanochat_model *model;
	nanochat_stream *stream;
	nanochat_error *err = NULL;
	int status;

	if (argc < 3) {
		fprintf(stderr, "usage: %s MODEL PROMPT [MAX_TOKENS [TEMPERATURE [SEED]]]\n", argv[0]);
		return 2;
	}
	nanochat_generate_options_init(&options, sizeof options);
	if (argc > 3)
		options.max_tokens = (uint32_t)strtoul(argv[3], NULL, 10);
	if (argc > 4)
		options.temperature = strtod(argv[4], NULL);
	if (argc > 5)
		options.seed = strtoull(argv[5], NULL, 10);

	if (nanochat_model_open(argv[1], NULL, &model, &err))
		return report(err);
	if (nanochat_stream_open(model, argv[2], strlen(argv[2]), &options, &stream, &err))
		status = report(err);
	else
		status = print_answer(stream);
	nanochat_stream_close(stream);
	nanochat_model_close(model);
	return status;
}
