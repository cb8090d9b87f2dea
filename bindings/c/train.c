/*
 * train CONFIG.toml [KEY=VALUE...]: trains a model and shows how far it is. Ctrl-C saves a
 * checkpoint and ends; the same command goes on from there.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nanochat.h>

static volatile sig_atomic_t interrupted;

/* No function of nanochat may be called here; the loop looks at the flag. */
static void on_interrupt(int number)
{
	(void)number;
	interrupted = 1;
}

/* value is the number under a key at the top of a record, or -1. A program with a JSON library uses
 * that. */
static double value(const char *record, const char *key)
{
	char quoted[64];
	const char *at;

	snprintf(quoted, sizeof quoted, "\"%s\":", key);
	at = strstr(record, quoted);
	return at ? strtod(at + strlen(quoted), NULL) : -1;
}

static void show(const char *record)
{
	if (strstr(record, "\"type\":\"step\""))
		printf("step %.0f of %.0f  loss %.4f  %.0f tokens/s  %.0f s left\n", value(record, "step"),
		       value(record, "steps"), value(record, "loss"), value(record, "tok_s"),
		       value(record, "left_s"));
	else if (strstr(record, "\"type\":\"result\""))
		printf("%s\n", record);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static char record[1 << 16];
	nanochat_error *err = NULL;
	nanochat_job *job;
	nanochat_status status;
	int32_t finish = 0;
	size_t length;

	if (argc < 2) {
		fprintf(stderr, "usage: %s CONFIG.toml [KEY=VALUE...]\n", argv[0]);
		return 2;
	}
	signal(SIGINT, on_interrupt);
	status = nanochat_train_open(argv[1], (const char *const *)argv + 2, (size_t)argc - 2, NULL,
	                             &job, &err);
	while (!status && !finish) {
		if (interrupted)
			nanochat_job_cancel(job);
		status = nanochat_job_next(job, 100, record, sizeof record - 1, &length, &finish, &err);
		if (status == NANOCHAT_E_TIMEOUT) {
			status = NANOCHAT_OK;
			continue;
		}
		record[length] = 0;
		if (!status && length)
			show(record);
	}
	if (status) {
		fprintf(stderr, "error: %s\nhint: %s\n", nanochat_error_message(err),
		        nanochat_error_hint(err));
		nanochat_error_free(err);
	}
	nanochat_job_close(job);
	return status ? EXIT_FAILURE : EXIT_SUCCESS;
}
