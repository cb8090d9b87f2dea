/* check.h: what the parts of the suite share. All of it is C99 and C++17. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <nanochat.h>

/* CHECK ends the program where a condition does not hold. */
#define CHECK(condition)                                                    \
	do {                                                                    \
		if (!(condition)) {                                                 \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			_exit(1);                                                       \
		}                                                                   \
	} while (0)

/* IS ends the program where a call has another status. */
#define IS(status, call)                                                            \
	do {                                                                            \
		nanochat_status got_ = (call);                                              \
		if (got_ != (status)) {                                                     \
			fprintf(stderr, "%s:%d: %s is %s, not %s\n", __FILE__, __LINE__, #call, \
			        nanochat_status_name(got_), #status);                           \
			_exit(1);                                                               \
		}                                                                           \
	} while (0)

/* open_model opens a model with one thread, or as many as asked for. */
nanochat_model *open_model(const char *path, uint32_t threads);

/* open_stream starts an answer of at most max_tokens that goes on after ends. */
nanochat_stream *open_stream(nanochat_model *model, uint32_t max_tokens);

/* read_all reads a stream to its end and returns its number of tokens. */
size_t read_all(nanochat_stream *stream);

/* now is a clock in milliseconds. */
double now(void);

/* resident is the memory of this process in KiB; files and threads are counts. */
long resident(void);
int files(void);
int threads(void);

/* The parts, by file. */
int generate(int argc, char **argv);
int contract(int argc, char **argv);
int misuse(int argc, char **argv);
int chaos(int argc, char **argv);
int concurrent(int argc, char **argv);
int forks(int argc, char **argv);
int signals(int argc, char **argv);
int cycles(int argc, char **argv);
int sessions(int argc, char **argv);
int jobs(int argc, char **argv);
int table(int argc, char **argv);

#endif
