/* shortage MODEL: calls that fail, with failing.so. Each has its own status, or NANOCHAT_E_NOMEM if
 * there was no memory to say so; the calls that follow work. Prints the number of allocations. */
#define _GNU_SOURCE
#include "../suite/check.h"

#include <dlfcn.h>

static int short_of_memory;

/* failed looks at a call that had to fail. */
static void failed(nanochat_status want, nanochat_status got, nanochat_error *err)
{
	if (got == NANOCHAT_E_NOMEM) {
		short_of_memory++;
		CHECK(nanochat_error_status(err) == NANOCHAT_E_NOMEM);
		CHECK(strstr(nanochat_error_message(err), "memory") && *nanochat_error_hint(err));
	} else {
		CHECK(got == want && nanochat_error_status(err) == want && *nanochat_error_message(err));
	}
	nanochat_error_free(err);
	nanochat_error_free(err); /* does nothing */
}

int main(int argc, char **argv)
{
	long (*allocations)(void);
	void *symbol = dlsym(RTLD_DEFAULT, "allocations");
	nanochat_error *err = NULL;
	nanochat_status got;
	nanochat_model *model, *none;
	nanochat_stream *stream, *second;
	nanochat_job *job;
	static char text[2000];
	char record[512];
	int32_t finish;
	size_t n;

	CHECK(argc == 2 && symbol);
	memcpy(&allocations, &symbol, sizeof symbol);
	model = open_model(argv[1], 1);
	stream = open_stream(model, 30);
	memset(text, 'a', sizeof text);
	got = nanochat_model_open("/none", NULL, &none, &err);
	failed(NANOCHAT_E_NOT_FOUND, got, err);
	got = nanochat_set("colour", "red", &err);
	failed(NANOCHAT_E_INVALID, got, err);
	got = nanochat_stream_open(model, text, sizeof text, NULL, &second, &err);
	failed(NANOCHAT_E_CONTEXT_FULL, got, err);
	got = nanochat_model_info(model, record, 1, &n, &err);
	failed(NANOCHAT_E_BUFFER_TOO_SMALL, got, err);
	got = nanochat_stream_next(stream, 0, record, 9, NULL, &err);
	failed(NANOCHAT_E_INVALID, got, err);
	IS(NANOCHAT_OK, nanochat_download_open("none-such", NULL, &job, NULL));
	while (nanochat_job_next(job, 100, record, sizeof record, &n, &finish, NULL) ==
	       NANOCHAT_E_TIMEOUT)
		;
	got = nanochat_job_next(job, 0, record, sizeof record, &n, &finish, &err);
	failed(NANOCHAT_E_NOT_FOUND, got, err);
	IS(NANOCHAT_OK, nanochat_job_close(job));
	CHECK(read_all(stream) == 30);
	IS(NANOCHAT_OK, nanochat_stream_close(stream));
	IS(NANOCHAT_OK, nanochat_model_close(model));
	CHECK(short_of_memory <= 1);
	printf("%ld %d\n", allocations(), short_of_memory);
	return 0;
}
