/* forks MODEL COUNT: children of fork(), made while another thread generates. In a child every
 * function returns E_FORKED at once; the parent is not affected. */
#include "check.h"

#include <sys/wait.h>

static nanochat_model *model;
static int stop;

static void *generate_on(void *arg)
{
	(void)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		nanochat_stream *stream = open_stream(model, 20);

		CHECK(read_all(stream) == 20);
		IS(NANOCHAT_OK, nanochat_stream_close(stream));
	}
	return NULL;
}

#define FORKED(call)                                                                     \
	do {                                                                                 \
		nanochat_error *err = NULL;                                                      \
		IS(NANOCHAT_E_FORKED, call);                                                     \
		CHECK(nanochat_error_status(err) == NANOCHAT_E_FORKED);                          \
		CHECK(strstr(nanochat_error_message(err), "fork") && *nanochat_error_hint(err)); \
		nanochat_error_free(err);                                                        \
	} while (0)

static void child(nanochat_stream *stream, nanochat_error *old, const char *path)
{
	nanochat_model *m;
	nanochat_stream *s;
	nanochat_piece piece;
	nanochat_stats stats;
	char buffer[64];
	int32_t ids[8] = {0};
	size_t n;

	alarm(10); /* ends a child that hangs, with a signal */
	nanochat_piece_init(&piece, sizeof piece);
	nanochat_stats_init(&stats, sizeof stats);
	CHECK(nanochat_abi_version() == NANOCHAT_ABI_VERSION && *nanochat_version());
	CHECK(!strcmp(nanochat_status_name(NANOCHAT_E_FORKED), "E_FORKED"));
	FORKED(nanochat_system_info(buffer, sizeof buffer, &n, &err));
	FORKED(nanochat_model_open(path, NULL, &m, &err));
	FORKED(nanochat_model_info(model, buffer, sizeof buffer, &n, &err));
	FORKED(nanochat_tokenize(model, "a", 1, 0, ids, 8, &n, &err));
	FORKED(nanochat_detokenize(model, ids, 1, 0, buffer, sizeof buffer, &n, &err));
	FORKED(nanochat_stream_open(model, "a", 1, NULL, &s, &err));
	FORKED(nanochat_stream_next(stream, NANOCHAT_FOREVER, buffer, sizeof buffer, &piece, &err));
	FORKED(nanochat_stream_top(stream, ids, NULL, 8, &n, &err));
	FORKED(nanochat_stream_stats(stream, &stats, &err));
	IS(NANOCHAT_E_FORKED, nanochat_stream_cancel(stream));
	IS(NANOCHAT_E_FORKED, nanochat_stream_close(stream));
	IS(NANOCHAT_E_FORKED, nanochat_model_close(model));
	CHECK(nanochat_error_status(old) == NANOCHAT_E_FORKED);
	nanochat_error_free(old);
	exit(0); /* not _exit: handlers of the library may run */
}

int forks(int argc, char **argv)
{
	nanochat_stream *stream;
	nanochat_error *err = NULL;
	nanochat_model *none;
	pthread_t thread;
	double slowest = 0;

	CHECK(argc == 2);
	model = open_model(argv[0], 2);
	stream = open_stream(model, 40);
	IS(NANOCHAT_E_NOT_FOUND, nanochat_model_open("/none", NULL, &none, &err));
	CHECK(!pthread_create(&thread, NULL, generate_on, NULL));
	for (int i = atoi(argv[1]); i > 0; i--) {
		double begin = now();
		int status;
		pid_t pid = fork();

		CHECK(pid >= 0);
		if (!pid)
			child(stream, err, argv[0]);
		CHECK(waitpid(pid, &status, 0) == pid);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		if (now() - begin > slowest)
			slowest = now() - begin;
	}
	CHECK(slowest < 5000);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	CHECK(!pthread_join(thread, NULL));
	CHECK(nanochat_error_status(err) == NANOCHAT_E_NOT_FOUND);
	nanochat_error_free(err);
	CHECK(read_all(stream) == 40);
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	IS(NANOCHAT_OK, nanochat_model_close(model));
	return 0;
}
