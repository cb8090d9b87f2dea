/* cycles MODEL COUNT KIB: open, generate and close, over and over, with sessions and jobs. Memory,
 * files and threads come back to where they were after the first tenth; memory within KIB. Prints
 * the growth. The garbage collector of the library makes memory swing, so the most of the first
 * tenth is compared with the least of the last: what leaks is missing in neither. */
#include "check.h"

#include <limits.h>

static void cycle(const char *path)
{
	nanochat_model *model = open_model(path, 2);
	nanochat_stream *stream = open_stream(model, 4), *unread = open_stream(model, 100);
	nanochat_error *err = NULL;
	nanochat_session *session;
	nanochat_job *log, *verify;
	nanochat_model *none;

	IS(NANOCHAT_OK, nanochat_log_open("debug", &log, NULL));
	IS(NANOCHAT_OK, nanochat_verify_open(path, NULL, &verify, NULL));
	CHECK(read_all(stream) == 4);
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	IS(NANOCHAT_OK, nanochat_session_open(model, &session, NULL));
	IS(NANOCHAT_OK, nanochat_session_stream(session, "x", 1, NULL, &stream, NULL));
	IS(NANOCHAT_OK, nanochat_session_close(session));
	IS(NANOCHAT_E_NOT_FOUND, nanochat_model_open("/none", NULL, &none, &err));
	nanochat_error_free(err);
	IS(NANOCHAT_OK, nanochat_model_close(model));
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	IS(NANOCHAT_OK, nanochat_stream_close(unread));
	IS(NANOCHAT_OK, nanochat_job_close(verify));
	IS(NANOCHAT_OK, nanochat_job_close(log));
}

int cycles(int argc, char **argv)
{
	int i, n, f, t;
	long most, memory, before = 0, after = LONG_MAX;

	CHECK(argc == 3);
	n = atoi(argv[1]);
	most = atol(argv[2]);
	for (i = 0; i < n / 10; i++) {
		cycle(argv[0]);
		if (resident() > before)
			before = resident();
	}
	f = files();
	t = threads();
	for (; i < n; i++) {
		cycle(argv[0]);
		if (i >= n - n / 10 && resident() < after)
			after = resident();
	}
	memory = after - before;
	printf("%d cycles: %+ld KiB, %+d files, %+d threads\n", n, memory, files() - f, threads() - t);
	CHECK(memory <= most);
	CHECK(files() <= f && threads() <= t + 4); /* the Go runtime keeps idle threads */
	return 0;
}
