// The emulated driver, as the other emulated libraries find it: beside them, and loaded already.
#pragma once
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
	int32_t (*queue)(uintptr_t, const char *(*)(void *), const void *, uint64_t);
	int (*inside)(uint64_t, uint64_t);
	int (*device)(void);
} driver;

static int connect_driver(void)
{
	Dl_info me;
	char path[4096];
	if (driver.queue)
		return 1;
	if (!dladdr((void *)connect_driver, &me))
		return 0;
	snprintf(path, sizeof path - 32, "%s", me.dli_fname);
	char *slash = strrchr(path, '/');
	void *d = NULL;
	for (int up = 0; !d && slash && up < 2; up++) { // beside it, or in the directory above
		strcpy(slash + 1, up ? "../libcuda.so.1" : "libcuda.so.1");
		d = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
	}
	if (!d)
		return 0;
	*(void **)&driver.inside = dlsym(d, "fake_cuda_inside");
	*(void **)&driver.device = dlsym(d, "fake_cuda_device");
	*(void **)&driver.queue = dlsym(d, "fake_cuda_queue");
	return driver.queue && driver.inside && driver.device;
}
