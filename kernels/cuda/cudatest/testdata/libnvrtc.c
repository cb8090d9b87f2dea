// A libnvrtc.so.13 for tests: it compiles kernels for the emulated driver with the C++ compiler of
// the machine. HOME_OF_HOST is the directory of host.h.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

typedef int32_t result;
enum { COMPILATION = 6, INVALID_INPUT = 3, INVALID_OPTION = 5 };

struct program {
	char dir[64], name[64], log[4096];
	char *code;
	size_t size;
};

result nvrtcVersion(int *major, int *minor)
{
	*major = 13, *minor = 0;
	return 0;
}

const char *nvrtcGetErrorString(result r)
{
	return r == COMPILATION ? "NVRTC_ERROR_COMPILATION"
	       : r              ? "NVRTC_ERROR_INVALID"
	                        : "NVRTC_SUCCESS";
}

static int put(const char *dir, const char *name, const char *text)
{
	char path[256];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	FILE *f = fopen(path, "w");
	if (!f)
		return 0;
	int ok = fputs(text, f) >= 0;
	return fclose(f) == 0 && ok;
}

result nvrtcCreateProgram(struct program **out, const char *source, const char *name, int n,
                          const char *const *headers, const char *const *names)
{
	struct program *p = calloc(1, sizeof *p);
	strcpy(p->dir, "/tmp/nvrtcXXXXXX");
	snprintf(p->name, sizeof p->name, "%s", name);
	if (!mkdtemp(p->dir) || !put(p->dir, name, source))
		return INVALID_INPUT;
	for (int i = 0; i < n; i++)
		if (!put(p->dir, names[i], headers[i]))
			return INVALID_INPUT;
	*out = p;
	return 0;
}

result nvrtcCompileProgram(struct program *p, int n, const char *const *options)
{
	int arch = 0;
	for (int i = 0; i < n; i++)
		arch |= strncmp(options[i], "--gpu-architecture=sm_", 22) == 0;
	if (!arch)
		return INVALID_OPTION;
	char command[1024];
	snprintf(command, sizeof command,
	         "cd %s && g++ -std=c++17 -O2 -ffp-contract=off -shared -fPIC -I. -I%s -x c++ %s -o "
	         "out.so 2>log",
	         p->dir, HOME_OF_HOST, p->name);
	int failed = system(command);
	char path[128];
	snprintf(path, sizeof path, "%s/%s", p->dir, failed ? "log" : "out.so");
	FILE *f = fopen(path, "rb");
	if (f && failed) {
		p->log[fread(p->log, 1, sizeof p->log - 1, f)] = 0;
	} else if (f) {
		struct stat s;
		fstat(fileno(f), &s);
		p->code = malloc((size_t)s.st_size);
		p->size = fread(p->code, 1, (size_t)s.st_size, f);
	}
	if (f)
		fclose(f);
	return failed || !f ? COMPILATION : 0;
}

result nvrtcGetProgramLogSize(struct program *p, size_t *n)
{
	*n = strlen(p->log) + 1;
	return 0;
}

result nvrtcGetProgramLog(struct program *p, char *log)
{
	strcpy(log, p->log);
	return 0;
}

result nvrtcGetCUBINSize(struct program *p, size_t *n)
{
	*n = p->size;
	return 0;
}

result nvrtcGetCUBIN(struct program *p, char *code)
{
	memcpy(code, p->code, p->size);
	return 0;
}

result nvrtcDestroyProgram(struct program **p)
{
	char command[128];
	snprintf(command, sizeof command, "rm -rf %s", (*p)->dir);
	result r = system(command) ? INVALID_INPUT : 0;
	free((*p)->code);
	free(*p);
	*p = NULL;
	return r;
}
