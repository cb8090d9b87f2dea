// A libnvrtc.so.13 for tests: it compiles kernels for the emulated driver with the C++ compiler of
// the machine, which has to be there. HOME_OF_HOST is the directory of host.h; what was compiled is
// kept in KEPT, one file a source, and taken from there while nothing that it is made of changes.
#include <glob.h>
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
	uint64_t hash;
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

static void add(struct program *p, const void *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		p->hash = (p->hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
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
	p->hash = 14695981039346656037u;
	add(p, __VERSION__, sizeof __VERSION__);
	add(p, source, strlen(source));
	if (!mkdtemp(p->dir) || !put(p->dir, name, source))
		return INVALID_INPUT;
	for (int i = 0; i < n; i++) {
		if (!put(p->dir, names[i], headers[i]))
			return INVALID_INPUT;
		add(p, headers[i], strlen(headers[i]));
	}
	glob_t g; // host.h and its like are the compiler's own
	if (glob(HOME_OF_HOST "/*.h", 0, NULL, &g) == 0) {
		for (size_t i = 0; i < g.gl_pathc; i++) {
			FILE *f = fopen(g.gl_pathv[i], "rb");
			char text[4096];
			for (size_t k; f && (k = fread(text, 1, sizeof text, f)) > 0;)
				add(p, text, k);
			if (f)
				fclose(f);
		}
		globfree(&g);
	}
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
	if (system("command -v g++ >/dev/null"))
		return COMPILATION;
	char kept[512], command[2048], path[128];
	snprintf(kept, sizeof kept, "%s/%s-%016llx.so", KEPT, p->name, (unsigned long long)p->hash);
	int failed = 0;
	FILE *f = fopen(kept, "rb");
	if (!f) {
		snprintf(
			command, sizeof command,
			"cd %s && g++ -std=c++17 -O2 -ffp-contract=off -shared -fPIC -I. -I%s -x c++ %s -o "
			"out.so 2>log && { mkdir -p %s && rm -f %s/%s-*.so && cp out.so %s.$$ && mv %s.$$ %s "
			"|| true; } 2>/dev/null",
			p->dir, HOME_OF_HOST, p->name, KEPT, KEPT, p->name, kept, kept, kept);
		failed = system(command);
		snprintf(path, sizeof path, "%s/%s", p->dir, failed ? "log" : "out.so");
		f = fopen(path, "rb");
	}
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
