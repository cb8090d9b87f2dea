// shim.h: what the C files of this package share.
#ifndef SHIM_H
#define SHIM_H

#include "_cgo_export.h"

// A call in progress.
struct call {
	int saved;            // errno of the caller
	nanochat_error **err; // where the caller wants the error object, or NULL
	uintptr_t error;      // its handle
	uintptr_t *out;       // &error, or NULL
};

// ncEnter begins a call. It is false in a forked child.
int ncEnter(struct call *c, nanochat_error **err);

// ncLeave ends it.
nanochat_status ncLeave(const struct call *c, nanochat_status status);

// ncInvalid ends it because an argument is wrong.
nanochat_status ncInvalid(const struct call *c, const char *message, const char *hint);

// ncSizeOf is what a structure says, or 0 if that cannot be true.
size_t ncSizeOf(const void *p, size_t first);

// ncComplete copies a structure of any version over the defaults of this one. It is
// false if there is something in it that this library does not know.
int ncComplete(void *to, size_t known, const void *from, size_t size);

// ncInit writes defaults to a structure of any version.
void ncInit(void *to, size_t size, const void *defaults, size_t known);

// What is said where ncComplete is false.
extern const char ncUnknownField[], ncUnknownHint[];

#endif
