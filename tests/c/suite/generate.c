/* generate MODEL PROMPT MAX_TOKENS TEMPERATURE SEED [STOP]: prints the token ids on a line,
 * the reason of the end on the next, and then the text. Prompts may be read from a file:
 * @PATH. */
#include "check.h"

static char *load(const char *argument, size_t *length)
{
	static char buffer[1 << 16];
	FILE *f;

	if (*argument != '@') {
		*length = strlen(argument);
		memcpy(buffer, argument, *length);
		return buffer;
	}
	f = fopen(argument + 1, "rb");
	CHECK(f);
	*length = fread(buffer, 1, sizeof buffer, f);
	fclose(f);
	return buffer;
}

int generate(int argc, char **argv)
{
	static char text[1 << 16];
	nanochat_generate_options options;
	nanochat_error *err = (nanochat_error *)1;
	nanochat_model *model;
	nanochat_stream *stream;
	nanochat_piece piece;
	nanochat_stats stats;
	size_t prompt_length, length = 0, tokens = 0, need = 0;
	char *prompt;
	const char *stops[1];

	CHECK(argc == 5 || argc == 6);
	prompt = load(argv[1], &prompt_length);
	model = open_model(argv[0], 0);
	nanochat_generate_options_init(&options, sizeof options);
	options.max_tokens = (uint32_t)strtoul(argv[2], NULL, 10);
	options.temperature = strtod(argv[3], NULL);
	options.seed = strtoull(argv[4], NULL, 10);
	if (argc == 6) {
		stops[0] = argv[5];
		options.stops = stops;
		options.stop_count = 1;
	}
	IS(NANOCHAT_OK, nanochat_stream_open(model, prompt, prompt_length, &options, &stream, &err));
	CHECK(!err);                        /* written on success as well */
	memset(prompt, 'x', prompt_length); /* it was copied */
	IS(NANOCHAT_OK, nanochat_model_close(model));

	nanochat_piece_init(&piece, sizeof piece);
	do {
		/* First without room: nothing may get lost. */
		nanochat_status s = nanochat_stream_next(stream, NANOCHAT_FOREVER, NULL, 0, &piece, NULL);

		if (s == NANOCHAT_E_BUFFER_TOO_SMALL) {
			need = (size_t)piece.length;
			CHECK(need > 0 && length + need < sizeof text);
			s = nanochat_stream_next(stream, 0, text + length, need, &piece, NULL);
			CHECK(piece.length == need);
		}
		IS(NANOCHAT_OK, s);
		length += (size_t)piece.length;
		if (piece.token >= 0) {
			printf("%s%d", tokens ? " " : "", (int)piece.token);
			tokens++;
		}
	} while (!piece.finish);
	printf("\n%s\n", nanochat_finish_name(piece.finish));
	fwrite(text, 1, length, stdout);

	nanochat_stats_init(&stats, sizeof stats);
	IS(NANOCHAT_OK, nanochat_stream_stats(stream, &stats, NULL));
	CHECK(stats.finish == piece.finish && stats.prompt_tokens > 0);
	CHECK(tokens == 0 || (stats.generated_tokens >= tokens && stats.prefill_ns > 0));
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	return 0;
}
