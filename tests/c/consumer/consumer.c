/* consumer MODEL PROMPT: prints the continuation. It has functions of its own with names that the
 * Go runtime uses too: the library must neither take them nor be in their way. */
#include <stdio.h>
#include <string.h>

#include <nanochat.h>

void crosscall2(void);
void fatalf(void);
void x_cgo_init(void);

static int called;

void crosscall2(void) { called++; }
void fatalf(void) { called++; }
void x_cgo_init(void) { called++; }

int main(int argc, char **argv)
{
	nanochat_model *model;
	nanochat_stream *stream;
	nanochat_error *err;
	nanochat_piece piece;
	char text[4096];

	if (argc != 3)
		return 2;
	if (nanochat_model_open(argv[1], NULL, &model, &err) ||
	    nanochat_stream_open(model, argv[2], strlen(argv[2]), NULL, &stream, &err)) {
		fprintf(stderr, "%s\n", nanochat_error_message(err));
		return 1;
	}
	nanochat_piece_init(&piece, sizeof piece);
	do {
		if (nanochat_stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &piece, &err))
			return 1;
		fwrite(text, 1, (size_t)piece.length, stdout);
	} while (!piece.finish);
	nanochat_stream_close(stream);
	nanochat_model_close(model);
	return called;
}
