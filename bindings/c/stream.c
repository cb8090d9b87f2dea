/*
 * stream MODEL PROMPT...: continues several prompts at the same time in one thread and
 * shows each answer on a line of its own. Ctrl-C cancels what is left: no call waits longer
 * than a tenth of a second, so that the program can look at its own affairs in between.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nanochat.h>

#define MAX_PROMPTS 16

struct answer {
	nanochat_stream *stream;
	char text[8192];
	size_t length;
	nanochat_status status;
	int32_t finish;
};

static volatile sig_atomic_t interrupted;

/* No function of nanochat may be called here; the loop looks at the flag. */
static void on_interrupt(int number)
{
	(void)number;
	interrupted = 1;
}

/* report prints what went wrong and what to do about it. */
static void report(nanochat_error *err)
{
	fprintf(stderr, "error: %s\nhint: %s\n", nanochat_error_message(err), nanochat_error_hint(err));
	nanochat_error_free(err);
}

/* step reads what has come for one answer, for at most wait_ms. It returns 0 when the
 * answer is over. */
static int step(struct answer *a, uint32_t wait_ms)
{
	nanochat_error *err = NULL;
	nanochat_piece piece;

	nanochat_piece_init(&piece, sizeof piece);
	a->status = nanochat_stream_next(a->stream, wait_ms, a->text + a->length,
	                                 sizeof a->text - a->length, &piece, &err);
	if (a->status == NANOCHAT_E_TIMEOUT)
		return 1;
	if (a->status != NANOCHAT_OK) {
		if (a->status != NANOCHAT_E_CANCELLED)
			report(err);
		else
			nanochat_error_free(err);
		a->finish =
			a->status == NANOCHAT_E_CANCELLED ? NANOCHAT_FINISH_CANCELLED : NANOCHAT_FINISH_ERROR;
		return 0;
	}
	a->length += (size_t)piece.length;
	a->finish = piece.finish;
	return !piece.finish;
}

int main(int argc, char **argv)
{
	static struct answer answers[MAX_PROMPTS];
	nanochat_generate_options options;
	nanochat_model *model;
	nanochat_error *err = NULL;
	int i, left, failed = 0, n = argc - 2;

	if (n < 1 || n > MAX_PROMPTS) {
		fprintf(stderr, "usage: %s MODEL PROMPT... (at most %d)\n", argv[0], MAX_PROMPTS);
		return 2;
	}
	signal(SIGINT, on_interrupt);
	if (nanochat_model_open(argv[1], NULL, &model, &err)) {
		report(err);
		return EXIT_FAILURE;
	}
	nanochat_generate_options_init(&options, sizeof options);
	options.max_tokens = 32;
	for (i = 0; i < n; i++) {
		const char *prompt = argv[2 + i];

		if (nanochat_stream_open(model, prompt, strlen(prompt), &options, &answers[i].stream,
		                         &err)) {
			report(err);
			failed = 1;
			answers[i].finish = NANOCHAT_FINISH_ERROR;
		}
	}
	do {
		left = 0;
		for (i = 0; i < n; i++) {
			if (interrupted && answers[i].stream)
				nanochat_stream_cancel(answers[i].stream);
			if (!answers[i].finish)
				left += step(&answers[i], 100);
		}
	} while (left);

	for (i = 0; i < n; i++) {
		printf("%s|%.*s [%s]\n", argv[2 + i], (int)answers[i].length, answers[i].text,
		       nanochat_finish_name(answers[i].finish));
		failed |= answers[i].finish == NANOCHAT_FINISH_ERROR;
		nanochat_stream_close(answers[i].stream);
	}
	nanochat_model_close(model);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
