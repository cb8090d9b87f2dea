/*
 * chat MODEL [TEMPLATE]: a conversation with a model, a line each. The whole conversation is
 * given to every call; the session sees to it that what was computed before is not computed
 * again. Without TEMPLATE it is the model's own; "phi3" or "chatml" are others.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nanochat.h>

#define MAX_MESSAGES 256
#define MAX_ANSWER 16384

static const char *roles[MAX_MESSAGES], *contents[MAX_MESSAGES];
static size_t lengths[MAX_MESSAGES], count;

static int report(nanochat_error *err)
{
	fprintf(stderr, "error: %s\nhint: %s\n", nanochat_error_message(err), nanochat_error_hint(err));
	nanochat_error_free(err);
	return EXIT_FAILURE;
}

/* add keeps a message. */
static int add(const char *role, const char *text, size_t length)
{
	char *copy = (char *)malloc(length + 1);

	if (!copy || count == MAX_MESSAGES)
		return 0;
	memcpy(copy, text, length);
	copy[length] = 0;
	roles[count] = role;
	contents[count] = copy;
	lengths[count++] = length;
	return 1;
}

/* answer prints the model's next message and keeps it. */
static nanochat_error *answer(nanochat_model *model, nanochat_session *session,
                              const char *template_name)
{
	static char text[MAX_ANSWER];
	nanochat_generate_options options;
	nanochat_stream *stream;
	nanochat_error *err = NULL;
	nanochat_piece piece;
	size_t length = 0;

	nanochat_generate_options_init(&options, sizeof options);
	options.max_tokens = 256;
	options.temperature = 0.7;
	options.repeat_penalty = 1.1;
	if (nanochat_chat_open(model, session, roles, contents, lengths, count, template_name, &options,
	                       &stream, &err))
		return err;
	nanochat_piece_init(&piece, sizeof piece);
	do {
		if (nanochat_stream_next(stream, NANOCHAT_FOREVER, text + length, sizeof text - length,
		                         &piece, &err))
			break;
		fwrite(text + length, 1, (size_t)piece.length, stdout);
		fflush(stdout);
		length += (size_t)piece.length;
	} while (!piece.finish);
	putchar('\n');
	nanochat_stream_close(stream);
	if (!err)
		add("assistant", text, length);
	return err;
}

int main(int argc, char **argv)
{
	nanochat_model *model;
	nanochat_session *session;
	nanochat_error *err = NULL;
	char line[4096];

	if (argc < 2) {
		fprintf(stderr, "usage: %s MODEL [TEMPLATE]\n", argv[0]);
		return 2;
	}
	if (nanochat_model_open(argv[1], NULL, &model, &err))
		return report(err);
	if (nanochat_session_open(model, &session, &err))
		return report(err);
	while (fputs("> ", stderr), fgets(line, sizeof line, stdin)) {
		if (!add("user", line, strcspn(line, "\n")))
			break;
		err = answer(model, session, argc > 2 ? argv[2] : NULL);
		if (nanochat_error_status(err) == NANOCHAT_E_CONTEXT_FULL) {
			fprintf(stderr, "the context is full\n");
			nanochat_error_free(err);
			break;
		}
		if (err)
			return report(err);
	}
	while (count)
		free((void *)contents[--count]);
	nanochat_session_close(session);
	nanochat_model_close(model);
	return EXIT_SUCCESS;
}
