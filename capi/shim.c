// go:build cgo

// The functions of nanochat.h. Each turns a forked child away, keeps errno, completes
// structures of other versions of the header, and calls its export of this package.
// What generates is in shim_stream.c, zoo and jobs are in shim_job.c.

#define _GNU_SOURCE
#include "shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

// ---------------------------------------------------------------------- fork

// The threads of the Go runtime do not exist in a forked child, and its locks may
// be held for ever: nothing of Go is entered there.
static volatile sig_atomic_t forked;

static void in_child(void) { forked = 1; }

__attribute__((constructor)) static void watch_fork(void) { pthread_atfork(NULL, NULL, in_child); }

// The error object of every call in a forked child. No handle of the table has this
// number: theirs begin at 17.
#define FORKED_ERROR ((nanochat_error *)1)

// The error object where there is no memory for one. Its address is even, those of the
// table are odd.
static const uint64_t no_memory;
#define NO_MEMORY_ERROR ((const nanochat_error *)&no_memory)

uintptr_t ncNoMemory(void) { return (uintptr_t)&no_memory; }

static const char forked_message[] =
	"this process is a fork of the one that loaded libnanochat; it works in the parent only";
static const char forked_hint[] =
	"start processes by exec or posix_spawn, or load the library after fork()";

// --------------------------------------------------------------------- calls

int ncEnter(struct call *c, nanochat_error **err)
{
	if (forked) {
		if (err)
			*err = FORKED_ERROR;
		return 0;
	}
	c->saved = errno;
	c->err = err;
	c->error = 0;
	c->out = err ? &c->error : NULL;
	return 1;
}

nanochat_status ncLeave(const struct call *c, nanochat_status status)
{
	if (c->err)
		*c->err = (nanochat_error *)c->error;
	errno = c->saved;
	return status;
}

nanochat_status ncInvalid(const struct call *c, const char *message, const char *hint)
{
	return ncLeave(c, ncgoInvalid((char *)message, (char *)hint, c->out));
}

// ---------------------------------------------------------------- structures

// A structure that says it is longer than this was not made by an _init function.
#define MAX_STRUCT 65536

size_t ncSizeOf(const void *p, size_t first)
{
	uint32_t size;

	memcpy(&size, p, sizeof size);
	return size < first || size > MAX_STRUCT ? 0 : size;
}

int ncComplete(void *to, size_t known, const void *from, size_t size)
{
	uint32_t mine = (uint32_t)known;

	for (size_t i = known; i < size; i++)
		if (((const unsigned char *)from)[i])
			return 0;
	memcpy(to, from, size < known ? size : known);
	memcpy(to, &mine, sizeof mine);
	return 1;
}

void ncInit(void *to, size_t size, const void *defaults, size_t known)
{
	uint32_t own = (uint32_t)size;

	if (!to || size < sizeof own || size > MAX_STRUCT)
		return;
	memset(to, 0, size);
	memcpy(to, defaults, size < known ? size : known);
	memcpy(to, &own, sizeof own);
}

// The size that the structure had in the first version of the header.
#define MODEL_OPTIONS_FIRST 32

_Static_assert(sizeof(nanochat_model_options) >= MODEL_OPTIONS_FIRST, "fields are only added");

static const nanochat_model_options model_defaults = {.struct_size = sizeof model_defaults};

void nanochat_model_options_init(nanochat_model_options *options, size_t size)
{
	ncInit(options, size, &model_defaults, sizeof model_defaults);
}

const char ncUnknownField[] =
	"the options are of a newer header and use what this library does not know";
const char ncUnknownHint[] =
	"install the library that the header came with, or leave the new fields 0";

// -------------------------------------------------------- versions and errors

uint32_t nanochat_abi_version(void) { return NANOCHAT_ABI_VERSION; }

const char *nanochat_version(void) { return NANOCHAT_VERSION_STRING; }

const char *nanochat_status_name(nanochat_status status)
{
	switch (status) {
	case NANOCHAT_OK:
		return "OK";
	case NANOCHAT_E_INVALID:
		return "E_INVALID";
	case NANOCHAT_E_NOT_FOUND:
		return "E_NOT_FOUND";
	case NANOCHAT_E_FORMAT:
		return "E_FORMAT";
	case NANOCHAT_E_CHECKSUM:
		return "E_CHECKSUM";
	case NANOCHAT_E_IO:
		return "E_IO";
	case NANOCHAT_E_NOMEM:
		return "E_NOMEM";
	case NANOCHAT_E_CANCELLED:
		return "E_CANCELLED";
	case NANOCHAT_E_TIMEOUT:
		return "E_TIMEOUT";
	case NANOCHAT_E_BUSY:
		return "E_BUSY";
	case NANOCHAT_E_CLOSED:
		return "E_CLOSED";
	case NANOCHAT_E_BUFFER_TOO_SMALL:
		return "E_BUFFER_TOO_SMALL";
	case NANOCHAT_E_CONTEXT_FULL:
		return "E_CONTEXT_FULL";
	case NANOCHAT_E_FORKED:
		return "E_FORKED";
	case NANOCHAT_E_UNSUPPORTED:
		return "E_UNSUPPORTED";
	case NANOCHAT_E_OFFLINE:
		return "E_OFFLINE";
	case NANOCHAT_E_DIVERGED:
		return "E_DIVERGED";
	case NANOCHAT_E_NETWORK:
		return "E_NETWORK";
	case NANOCHAT_E_PLANNED:
		return "E_PLANNED";
	case NANOCHAT_E_INTERNAL:
		return "E_INTERNAL";
	}
	return "E_UNKNOWN";
}

const char *nanochat_finish_name(int32_t finish)
{
	static const char *const names[] = {"", "stop", "length", "cancelled", "error"};

	return finish < 0 || finish > NANOCHAT_FINISH_ERROR ? "" : names[finish];
}

char *ncText(const char *text, size_t length)
{
	char *copy = calloc(length + 1, 1);

	if (copy && length)
		memcpy(copy, text, length);
	return copy;
}

nanochat_status nanochat_error_status(const nanochat_error *err)
{
	struct call c;

	if (!err)
		return NANOCHAT_OK;
	if (!ncEnter(&c, NULL))
		return NANOCHAT_E_FORKED;
	if (err == NO_MEMORY_ERROR)
		return NANOCHAT_E_NOMEM;
	return ncLeave(&c, ncgoErrorStatus((uintptr_t)err));
}

const char *nanochat_error_message(const nanochat_error *err)
{
	struct call c;
	const char *text;

	if (!err)
		return "";
	if (!ncEnter(&c, NULL))
		return forked_message;
	if (err == NO_MEMORY_ERROR)
		return "there is no memory to say what is wrong";
	text = ncgoErrorMessage((uintptr_t)err);
	ncLeave(&c, NANOCHAT_OK);
	return text ? text : "";
}

const char *nanochat_error_hint(const nanochat_error *err)
{
	struct call c;
	const char *text;

	if (!err)
		return "";
	if (!ncEnter(&c, NULL))
		return forked_hint;
	if (err == NO_MEMORY_ERROR)
		return "close other models or programs";
	text = ncgoErrorHint((uintptr_t)err);
	ncLeave(&c, NANOCHAT_OK);
	return text ? text : "";
}

void nanochat_error_free(nanochat_error *err)
{
	struct call c;

	if (!err || err == NO_MEMORY_ERROR || !ncEnter(&c, NULL))
		return;
	ncgoErrorFree((uintptr_t)err);
	ncLeave(&c, NANOCHAT_OK);
}

nanochat_status nanochat_system_info(char *buffer, size_t capacity, size_t *length,
                                     nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoSystemInfo(buffer, capacity, length, c.out));
}

const char *ncLibraryPath(void)
{
	Dl_info info;

	return dladdr(nanochat_version(), &info) ? info.dli_fname : NULL;
}

nanochat_status nanochat_set(const char *key, const char *value, nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoSet((char *)key, (char *)value, c.out));
}

nanochat_status nanochat_get(const char *key, char *buffer, size_t capacity, size_t *length,
                             nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (length)
		*length = 0;
	return ncLeave(&c, ncgoGet((char *)key, buffer, capacity, length, c.out));
}

// -------------------------------------------------------------------- models

nanochat_status nanochat_model_open(const char *name, const nanochat_model_options *options,
                                    nanochat_model **model, nanochat_error **err)
{
	struct call c;
	nanochat_model_options o = model_defaults;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (model)
		*model = NULL;
	if (options) {
		size_t size = ncSizeOf(options, MODEL_OPTIONS_FIRST);

		if (!size)
			return ncInvalid(&c, "struct_size of the model options is wrong",
			                 "call nanochat_model_options_init first");
		if (!ncComplete(&o, sizeof o, options, size))
			return ncInvalid(&c, ncUnknownField, ncUnknownHint);
	}
	return ncLeave(&c, ncgoModelOpen((char *)name, &o, (uintptr_t *)model, c.out));
}

nanochat_status nanochat_model_info(nanochat_model *model, char *buffer, size_t capacity,
                                    size_t *length, nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (length)
		*length = 0;
	return ncLeave(&c, ncgoModelInfo((uintptr_t)model, buffer, capacity, length, c.out));
}

nanochat_status nanochat_model_close(nanochat_model *model)
{
	struct call c;

	if (!ncEnter(&c, NULL))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoModelClose((uintptr_t)model));
}

// -------------------------------------------------------------------- tokens

nanochat_status nanochat_tokenize(nanochat_model *model, const char *text, size_t length,
                                  uint32_t flags, int32_t *ids, size_t capacity, size_t *count,
                                  nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoTokenize((uintptr_t)model, (char *)text, length, flags, ids, capacity,
	                                count, c.out));
}

nanochat_status nanochat_detokenize(nanochat_model *model, const int32_t *ids, size_t count,
                                    uint32_t flags, char *buffer, size_t capacity, size_t *length,
                                    nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoDetokenize((uintptr_t)model, (int32_t *)ids, count, flags, buffer,
	                                  capacity, length, c.out));
}
