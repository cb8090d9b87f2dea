// The functions of nanochat.h for the zoo and for jobs; see shim.c.

#include "shim.h"

// The size that the structure had in the first version of the header.
#define ZOO_OPTIONS_FIRST 48

_Static_assert(sizeof(nanochat_zoo_options) >= ZOO_OPTIONS_FIRST, "fields are only added");

static const nanochat_zoo_options zoo_defaults = {.struct_size = sizeof zoo_defaults};

void nanochat_zoo_options_init(nanochat_zoo_options *options, size_t size)
{
	ncInit(options, size, &zoo_defaults, sizeof zoo_defaults);
}

// zoo_options completes the options of a caller. It is false, with the call ended, where they
// are wrong.
static int zoo_options(const struct call *c, const nanochat_zoo_options *from,
                       nanochat_zoo_options *to, nanochat_status *status)
{
	size_t size;

	*to = zoo_defaults;
	if (!from)
		return 1;
	if (!(size = ncSizeOf(from, ZOO_OPTIONS_FIRST)))
		*status = ncInvalid(c, "struct_size of the zoo options is wrong",
		                    "call nanochat_zoo_options_init first");
	else if (!ncComplete(to, sizeof *to, from, size))
		*status = ncInvalid(c, ncUnknownField, ncUnknownHint);
	else
		return 1;
	return 0;
}

nanochat_status nanochat_zoo_list(const nanochat_zoo_options *options, char *buffer,
                                  size_t capacity, size_t *length, nanochat_error **err)
{
	struct call c;
	nanochat_zoo_options o;
	nanochat_status status;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (length)
		*length = 0;
	if (!zoo_options(&c, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoZooList(&o, buffer, capacity, length, c.out));
}

nanochat_status nanochat_zoo_resolve(const char *name, const nanochat_zoo_options *options,
                                     char *buffer, size_t capacity, size_t *length,
                                     nanochat_error **err)
{
	struct call c;
	nanochat_zoo_options o;
	nanochat_status status;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (length)
		*length = 0;
	if (!zoo_options(&c, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoZooResolve((char *)name, &o, buffer, capacity, length, c.out));
}

nanochat_status nanochat_zoo_remove(const char *name, const nanochat_zoo_options *options,
                                    uint64_t *freed, nanochat_error **err)
{
	struct call c;
	nanochat_zoo_options o;
	nanochat_status status;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (freed)
		*freed = 0;
	if (!zoo_options(&c, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoZooRemove((char *)name, &o, freed, c.out));
}

// ---------------------------------------------------------------------- jobs

nanochat_status nanochat_job_next(nanochat_job *job, uint32_t timeout_ms, char *buffer,
                                  size_t capacity, size_t *length, int32_t *finish,
                                  nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (length)
		*length = 0;
	if (finish)
		*finish = 0;
	return ncLeave(
		&c, ncgoJobNext((uintptr_t)job, timeout_ms, buffer, capacity, length, finish, c.out));
}

nanochat_status nanochat_job_cancel(nanochat_job *job)
{
	struct call c;

	if (!ncEnter(&c, NULL))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoJobCancel((uintptr_t)job));
}

nanochat_status nanochat_job_close(nanochat_job *job)
{
	struct call c;

	if (!ncEnter(&c, NULL))
		return NANOCHAT_E_FORKED;
	return ncLeave(&c, ncgoJobClose((uintptr_t)job));
}

nanochat_status nanochat_download_open(const char *name, const nanochat_zoo_options *options,
                                       nanochat_job **job, nanochat_error **err)
{
	struct call c;
	nanochat_zoo_options o;
	nanochat_status status;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (job)
		*job = NULL;
	if (!zoo_options(&c, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoDownloadOpen((char *)name, &o, (uintptr_t *)job, c.out));
}

nanochat_status nanochat_verify_open(const char *name, const nanochat_zoo_options *options,
                                     nanochat_job **job, nanochat_error **err)
{
	struct call c;
	nanochat_zoo_options o;
	nanochat_status status;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (job)
		*job = NULL;
	if (!zoo_options(&c, options, &o, &status))
		return status;
	return ncLeave(&c, ncgoVerifyOpen((char *)name, &o, (uintptr_t *)job, c.out));
}

nanochat_status nanochat_train_open(const char *config, const char *const *overrides, size_t count,
                                    const char *resume, nanochat_job **job, nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (job)
		*job = NULL;
	return ncLeave(&c, ncgoTrainOpen((char *)config, (char **)overrides, count, (char *)resume,
	                                 (uintptr_t *)job, c.out));
}

nanochat_status nanochat_log_open(const char *level, nanochat_job **job, nanochat_error **err)
{
	struct call c;

	if (!ncEnter(&c, err))
		return NANOCHAT_E_FORKED;
	if (job)
		*job = NULL;
	return ncLeave(&c, ncgoLogOpen((char *)level, (uintptr_t *)job, c.out));
}
