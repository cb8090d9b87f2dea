/* signals MODEL: handlers that the host installs while the library is loaded keep working
 * while it generates. loading.c has those that were installed before. */
#include "check.h"

#include <sys/time.h>

static volatile sig_atomic_t counts[65];

static void count(int number) { counts[number]++; }

static void install(int number)
{
	struct sigaction action;

	memset(&action, 0, sizeof action);
	action.sa_handler = count;
	action.sa_flags = SA_RESTART | SA_ONSTACK;
	CHECK(!sigaction(number, &action, NULL));
}

int signals(int argc, char **argv)
{
	static const int kinds[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD, SIGALRM};
	struct itimerval fast = {{0, 1000}, {0, 1000}}, off = {{0, 0}, {0, 0}};
	nanochat_model *model;

	CHECK(argc == 1);
	model = open_model(argv[0], 2);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		install(kinds[i]);
	install(SIGPROF);
	/* A profiler of the host and its timer interrupt every thread all the time. */
	CHECK(!setitimer(ITIMER_PROF, &fast, NULL) && !setitimer(ITIMER_REAL, &fast, NULL));
	for (int i = 0; i < 30; i++) {
		nanochat_stream *stream = open_stream(model, 50);

		raise(kinds[i % 6]);
		CHECK(read_all(stream) == 50);
		IS(NANOCHAT_OK, nanochat_stream_close(stream));
	}
	CHECK(!setitimer(ITIMER_PROF, &off, NULL) && !setitimer(ITIMER_REAL, &off, NULL));
	for (size_t i = 0; i < 6; i++)
		CHECK(counts[kinds[i]] == 5);
	CHECK(counts[SIGPROF] > 0 && counts[SIGALRM] > 0);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		struct sigaction action;

		CHECK(!sigaction(kinds[i], NULL, &action) && action.sa_handler == count);
	}
	IS(NANOCHAT_OK, nanochat_model_close(model));
	return 0;
}
