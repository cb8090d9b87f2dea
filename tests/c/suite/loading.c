/* loading LIBRARY MODEL: a program that is not linked to the library, but loads it with
 * dlopen(), unloads it and loads it again. Signal handlers that it installed before stay its
 * own, that of SIGSEGV included. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <nanochat.h>

#define CHECK(condition)                                                    \
	do {                                                                    \
		if (!(condition)) {                                                 \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			_exit(1);                                                       \
		}                                                                   \
	} while (0)

static volatile sig_atomic_t counts[65];
static sigjmp_buf back;

static void count(int number) { counts[number]++; }

static void on_fault(int number)
{
	counts[number]++;
	siglongjmp(back, 1);
}

/* LOOKUP sets a function pointer of the type of a declared function. */
#define LOOKUP(to, library, name)             \
	do {                                      \
		void *p_ = dlsym(library, name);      \
		CHECK(p_ && sizeof p_ == sizeof(to)); \
		memcpy(&(to), &p_, sizeof p_);        \
	} while (0)

static void use(void *library, const char *path)
{
	nanochat_status (*model_open)(const char *, const nanochat_model_options *, nanochat_model **,
	                              nanochat_error **);
	nanochat_status (*model_close)(nanochat_model *);
	nanochat_status (*stream_open)(nanochat_model *, const char *, size_t,
	                               const nanochat_generate_options *, nanochat_stream **,
	                               nanochat_error **);
	nanochat_status (*stream_next)(nanochat_stream *, uint32_t, char *, size_t, nanochat_piece *,
	                               nanochat_error **);
	nanochat_status (*stream_close)(nanochat_stream *);
	void (*piece_init)(nanochat_piece *, size_t);
	nanochat_model *model;
	nanochat_stream *stream;
	nanochat_piece piece;
	char text[256];

	LOOKUP(model_open, library, "nanochat_model_open");
	LOOKUP(model_close, library, "nanochat_model_close");
	LOOKUP(stream_open, library, "nanochat_stream_open");
	LOOKUP(stream_next, library, "nanochat_stream_next");
	LOOKUP(stream_close, library, "nanochat_stream_close");
	LOOKUP(piece_init, library, "nanochat_piece_init");
	CHECK(!model_open(path, NULL, &model, NULL));
	CHECK(!stream_open(model, "fn", 2, NULL, &stream, NULL));
	piece_init(&piece, sizeof piece);
	do
		CHECK(!stream_next(stream, NANOCHAT_FOREVER, text, sizeof text, &piece, NULL));
	while (!piece.finish);
	CHECK(!stream_close(stream) && !model_close(model));
}

int main(int argc, char **argv)
{
	static const int kinds[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD, SIGPIPE};
	struct sigaction action;
	int *volatile nowhere = NULL;
	void *library, *again;

	CHECK(argc == 3);
	alarm(60);
	memset(&action, 0, sizeof action);
	action.sa_handler = count; /* without SA_ONSTACK: the runtime adds it */
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		CHECK(!sigaction(kinds[i], &action, NULL));
	action.sa_handler = on_fault;
	CHECK(!sigaction(SIGSEGV, &action, NULL));

	library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	if (!library)
		fprintf(stderr, "%s\n", dlerror());
	CHECK(library);
	use(library, argv[2]);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		CHECK(!raise(kinds[i]));
		CHECK(counts[kinds[i]] == 1);
	}
	for (int i = 1; i <= 3; i++) {
		if (!sigsetjmp(back, 1))
			*nowhere = 1;
		CHECK(counts[SIGSEGV] == i);
		use(library, argv[2]);
	}

	/* The library stays: a second dlopen finds the same one, ready for use. */
	CHECK(!dlclose(library));
	again = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
	CHECK(again);
	use(again, argv[2]);
	return 0;
}
