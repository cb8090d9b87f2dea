/* failing.so, for LD_PRELOAD: the N-th allocation that libnanochat makes for C fails, with N in
 * NANOCHAT_FAIL_AT. It makes them by calloc(), and nothing else in the library does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

void *__libc_calloc(size_t count, size_t size);

static long calls;

/* allocations is how many there were. */
long allocations(void) { return calls; }

void *calloc(size_t count, size_t size)
{
	static __thread int inside;
	Dl_info info;
	void *caller = __builtin_return_address(0);
	int ours;

	if (inside)
		return __libc_calloc(count, size);
	inside = 1;
	ours = dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "libnanochat");
	inside = 0;
	if (ours) {
		const char *at = getenv("NANOCHAT_FAIL_AT");

		calls++;
		if (at && calls == atol(at))
			return NULL;
	}
	return __libc_calloc(count, size);
}
