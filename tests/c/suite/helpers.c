/* helpers.c: what check.h promises. */
#include "check.h"

#include <dirent.h>
#include <time.h>

nanochat_model *open_model(const char *path, uint32_t threads)
{
	nanochat_model_options options;
	nanochat_model *model = NULL;
	nanochat_error *err = NULL;

	nanochat_model_options_init(&options, sizeof options);
	options.threads = threads;
	if (nanochat_model_open(path, &options, &model, &err)) {
		fprintf(stderr, "open: %s\n", nanochat_error_message(err));
		_exit(1);
	}
	CHECK(model && !err);
	return model;
}

nanochat_stream *open_stream(nanochat_model *model, uint32_t max_tokens)
{
	nanochat_generate_options options;
	nanochat_stream *stream = NULL;

	nanochat_generate_options_init(&options, sizeof options);
	options.max_tokens = max_tokens;
	options.flags = NANOCHAT_GENERATE_IGNORE_END;
	IS(NANOCHAT_OK, nanochat_stream_open(model, "fn", 2, &options, &stream, NULL));
	CHECK(stream);
	return stream;
}

size_t read_all(nanochat_stream *stream)
{
	char text[256];
	nanochat_piece piece;
	size_t tokens = 0;

	nanochat_piece_init(&piece, sizeof piece);
	do {
		IS(NANOCHAT_OK,
		   nanochat_stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &piece, NULL));
		CHECK(piece.struct_size == sizeof piece && piece.length <= sizeof text);
		tokens += piece.token >= 0;
	} while (!piece.finish);
	return tokens;
}

double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

long resident(void)
{
	long pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	CHECK(f && fscanf(f, "%*d %ld", &pages) == 1);
	fclose(f);
	return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static int entries(const char *path)
{
	int n = 0;
	DIR *d = opendir(path);

	CHECK(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

int files(void) { return entries("/proc/self/fd"); }

int threads(void) { return entries("/proc/self/task"); }
