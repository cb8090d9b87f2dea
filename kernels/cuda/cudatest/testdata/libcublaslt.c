// A libcublasLt.so.13 for tests: products on the emulated driver's memory, in float32 (or int32)
// along k in order. It takes what cuBLASLt takes, and checks what that takes on trust: that
// matrices lie in the device's memory, that results do not lie over factors, that an algorithm is
// for this problem.
//
// FAKE_CUBLAS_REFUSE=n makes the first n algorithms of every product fail when they are used;
// FAKE_CUBLAS_FAIL ("cublasLtCreate:3") makes a function fail with a status.
#define _GNU_SOURCE
#include "driver.h"

enum {
	NOT_INITIALIZED = 1,
	ALLOC_FAILED = 3,
	INVALID_VALUE = 7,
	EXECUTION_FAILED = 13,
	NOT_SUPPORTED = 15
};
enum { R32F = 0, R16F = 2, R8I = 3, R32I = 10, R16BF = 14 };
enum { COMPUTE_32F = 68, COMPUTE_32I = 72, COMPUTE_TF32 = 77 };

static int injected(const char *name)
{
	const char *v = getenv("FAKE_CUBLAS_FAIL");
	const size_t n = strlen(name);
	return v && strncmp(v, name, n) == 0 && v[n] == ':' ? atoi(v + n + 1) : 0;
}
#define CALL                         \
	do {                             \
		int r_ = injected(__func__); \
		if (r_)                      \
			return r_;               \
	} while (0)

struct handle {
	int device;
};
static int live; // what was created and not destroyed

// fake_cublas_left is the handles and descriptions that were not destroyed.
int fake_cublas_left(void) { return live; }

int cublasLtCreate(struct handle **h)
{
	CALL;
	if (!connect_driver() || driver.device() < 0)
		return NOT_INITIALIZED;
	*h = malloc(sizeof **h);
	(*h)->device = driver.device();
	__sync_fetch_and_add(&live, 1);
	return 0;
}
static int destroy(void *p)
{
	if (!p)
		return INVALID_VALUE;
	free(p);
	__sync_fetch_and_sub(&live, 1);
	return 0;
}
int cublasLtDestroy(struct handle *h) { return destroy(h); }
size_t cublasLtGetVersion(void) { return 130100; }
const char *cublasLtGetStatusName(int status)
{
	return status == NOT_INITIALIZED    ? "CUBLAS_STATUS_NOT_INITIALIZED"
	       : status == ALLOC_FAILED     ? "CUBLAS_STATUS_ALLOC_FAILED"
	       : status == INVALID_VALUE    ? "CUBLAS_STATUS_INVALID_VALUE"
	       : status == EXECUTION_FAILED ? "CUBLAS_STATUS_EXECUTION_FAILED"
	       : status == NOT_SUPPORTED    ? "CUBLAS_STATUS_NOT_SUPPORTED"
	                                    : "CUBLAS_STATUS_UNKNOWN";
}
const char *cublasLtGetStatusString(int status)
{
	return status ? "the emulated library refused" : "success";
}

struct desc {
	int compute, scale, trans[2];
};
int cublasLtMatmulDescCreate(struct desc **d, int compute, int scale)
{
	CALL;
	if (!(((compute == COMPUTE_32F || compute == COMPUTE_TF32) && scale == R32F) ||
	      (compute == COMPUTE_32I && scale == R32I)))
		return NOT_SUPPORTED;
	*d = calloc(1, sizeof **d);
	(*d)->compute = compute, (*d)->scale = scale;
	__sync_fetch_and_add(&live, 1);
	return 0;
}
int cublasLtMatmulDescSetAttribute(struct desc *d, int attribute, const int32_t *v, size_t bytes)
{
	CALL;
	if (bytes != 4 || (attribute != 3 && attribute != 4) || *v < 0 || *v > 1)
		return INVALID_VALUE;
	d->trans[attribute - 3] = *v;
	return 0;
}
int cublasLtMatmulDescDestroy(struct desc *d) { return destroy(d); }

struct layout {
	int type, batch;
	uint64_t rows, cols;
	int64_t ld, stride;
};
int cublasLtMatrixLayoutCreate(struct layout **l, int type, uint64_t rows, uint64_t cols,
                               int64_t ld)
{
	CALL;
	if (rows == 0 || cols == 0 || ld < (int64_t)rows)
		return INVALID_VALUE;
	*l = malloc(sizeof **l);
	**l = (struct layout){type, 1, rows, cols, ld, 0};
	__sync_fetch_and_add(&live, 1);
	return 0;
}
int cublasLtMatrixLayoutSetAttribute(struct layout *l, int attribute, const void *v, size_t bytes)
{
	CALL;
	if (attribute == 5 && bytes == 4)
		memcpy(&l->batch, v, 4);
	else if (attribute == 6 && bytes == 8)
		memcpy(&l->stride, v, 8);
	else
		return INVALID_VALUE;
	return l->batch < 1 ? INVALID_VALUE : 0;
}
int cublasLtMatrixLayoutDestroy(struct layout *l) { return destroy(l); }

struct preference {
	uint64_t workspace;
	uint32_t alignment[4], reduction;
};
int cublasLtMatmulPreferenceCreate(struct preference **p)
{
	CALL;
	*p = malloc(sizeof **p);
	**p = (struct preference){0, {256, 256, 256, 256}, 7};
	__sync_fetch_and_add(&live, 1);
	return 0;
}
int cublasLtMatmulPreferenceSetAttribute(struct preference *p, int attribute, const void *v,
                                         size_t bytes)
{
	CALL;
	if (attribute == 1 && bytes == 8)
		memcpy(&p->workspace, v, 8);
	else if (attribute == 3 && bytes == 4)
		memcpy(&p->reduction, v, 4);
	else if (attribute >= 5 && attribute <= 8 && bytes == 4)
		memcpy(&p->alignment[attribute - 5], v, 4);
	else
		return INVALID_VALUE;
	return 0;
}
int cublasLtMatmulPreferenceDestroy(struct preference *p) { return destroy(p); }

// ------------------------------------------------------------------ products

struct problem { // all that an algorithm is for
	struct desc desc;
	struct layout layouts[4];
	uint32_t alignment[4];
};
struct algo {
	uint64_t problem, workspace, number;
	uint64_t divided; // 1: the sum of the first half of k is kept as the result's type
	uint64_t unused[4];
};
struct choice {
	struct algo algo;
	uint64_t workspace;
	int32_t state;
	float waves;
	int32_t reserved[4];
};
_Static_assert(sizeof(struct algo) == 64 && sizeof(struct choice) == 96, "as in cublasLt.h");

static uint64_t hash(const struct problem *p)
{
	uint64_t h = 14695981039346656037u;
	for (size_t i = 0; i < sizeof *p; i++)
		h = (h ^ ((const unsigned char *)p)[i]) * 1099511628211u;
	return h;
}
static int size_of(int type)
{
	return type == R8I                     ? 1
	       : type == R16F || type == R16BF ? 2
	       : type == R32F || type == R32I  ? 4
	                                       : 0;
}
static struct problem problem_of(const struct desc *d, const struct layout *a,
                                 const struct layout *b, const struct layout *c,
                                 const struct layout *out)
{
	struct problem p;
	memset(&p, 0, sizeof p);
	p.desc = *d;
	p.layouts[0] = *a, p.layouts[1] = *b, p.layouts[2] = *c, p.layouts[3] = *out;
	return p;
}

// supported says whether the library has products like this.
static int supported(const struct problem *p)
{
	const struct layout *a = &p->layouts[0], *b = &p->layouts[1], *c = &p->layouts[2],
						*d = &p->layouts[3];
	const int *t = p->desc.trans;
	const uint64_t m = d->rows, n = d->cols, k = t[0] ? a->rows : a->cols;
	if ((t[0] ? a->cols : a->rows) != m || (t[1] ? b->rows : b->cols) != n ||
	    (t[1] ? b->cols : b->rows) != k || c->rows != m || c->cols != n)
		return INVALID_VALUE;
	if (a->batch != d->batch || b->batch != d->batch || c->batch != d->batch)
		return INVALID_VALUE;
	if (a->type != b->type || c->type != d->type)
		return NOT_SUPPORTED;
	if (p->desc.compute == COMPUTE_32I) { // as its documentation has it
		for (int i = 0; i < 4; i++)
			if (p->layouts[i].ld % 4 || p->alignment[i] % 4)
				return NOT_SUPPORTED;
		return a->type == R8I && d->type == R32I && t[0] && !t[1] && m % 4 == 0 && k % 4 == 0
				   ? 0
				   : NOT_SUPPORTED;
	}
	if (p->desc.compute == COMPUTE_TF32)
		return a->type == R32F && d->type == R32F ? 0 : NOT_SUPPORTED;
	if (a->type != R32F && a->type != R16F && a->type != R16BF)
		return NOT_SUPPORTED;
	return d->type == R32F || d->type == a->type ? 0 : NOT_SUPPORTED;
}

int cublasLtMatmulAlgoGetHeuristic(struct handle *h, const struct desc *d, const struct layout *a,
                                   const struct layout *b, const struct layout *c,
                                   const struct layout *out, const struct preference *pref, int n,
                                   struct choice *list, int *found)
{
	CALL;
	struct problem p = problem_of(d, a, b, c, out);
	memcpy(p.alignment, pref->alignment, sizeof p.alignment);
	if (!h || n < 1)
		return INVALID_VALUE;
	const int r = supported(&p);
	*found = 0;
	if (r)
		return r;
	for (; *found < n && *found < 3; ++*found) {
		struct choice *x = &list[*found];
		memset(x, 0, sizeof *x);
		x->workspace = *found == 1 ? pref->workspace : 1 << 20;
		x->state = *found == 2 ? NOT_SUPPORTED : 0;
		x->algo = (struct algo){
			hash(&p), x->workspace, (uint64_t)*found + 1, (pref->reduction & 5) != 0, {0}};
	}
	return 0;
}

struct product {
	struct problem p;
	int divided;
	union {
		float f;
		int32_t i;
	} alpha, beta;
	const char *a, *b, *c;
	char *d;
};

static float half(uint16_t h)
{
	uint32_t u = (uint32_t)(h & 0x7fff) << 13;
	float f;
	memcpy(&f, &u, 4);
	f *= 0x1p112f;
	if (u >= 0x0f800000) { // no number is so large
		u |= 0x7f800000;
		memcpy(&f, &u, 4);
	}
	return h >> 15 ? -f : f;
}
static uint16_t to_half(float f)
{
	uint32_t u;
	memcpy(&u, &f, 4);
	const uint32_t sign = u >> 16 & 0x8000, top = u & 0x7fffffff;
	if (top > 0x7f800000)
		return (uint16_t)(sign | 0x7fff);
	if (top >= 0x477ff000)
		return (uint16_t)(sign | 0x7c00);
	if (top < 0x38800000) { // 2^-24 is the unit; 0.5 has the same one in float32
		float t;
		memcpy(&t, &top, 4);
		t += 0.5f;
		memcpy(&u, &t, 4);
		return (uint16_t)(sign | (u - 0x3f000000));
	}
	return (uint16_t)(sign | (((top + 0xfff + (top >> 13 & 1)) >> 13) - (112 << 10)));
}
static float load(const char *p, int type, int64_t i)
{
	uint32_t u;
	float f;
	switch (type) {
	case R16F:
		return half(((const uint16_t *)p)[i]);
	case R16BF:
		u = (uint32_t)((const uint16_t *)p)[i] << 16;
		memcpy(&f, &u, 4);
		return f;
	}
	return ((const float *)p)[i];
}
// factor is load as the product sees it: TF32 has 10 bits behind the point.
static float factor(const struct product *x, const char *p, int type, int64_t i)
{
	float f = load(p, type, i);
	if (x->p.desc.compute == COMPUTE_TF32) {
		uint32_t u;
		memcpy(&u, &f, 4);
		u = (u + 0x1000) & ~0x1fffu;
		memcpy(&f, &u, 4);
	}
	return f;
}
static void store(char *p, int type, int64_t i, float f)
{
	uint32_t u;
	memcpy(&u, &f, 4);
	if (type == R32F)
		((float *)p)[i] = f;
	else if (type == R16F)
		((uint16_t *)p)[i] = to_half(f);
	else
		((uint16_t *)p)[i] = (u & 0x7fffffff) > 0x7f800000
		                         ? (uint16_t)(u >> 16 | 0x40)
		                         : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

// multiply is one product of a batch. Its loops go along m, where sums are independent.
static void multiply(const struct product *x, int64_t at)
{
	const struct layout *la = &x->p.layouts[0], *lb = &x->p.layouts[1], *lc = &x->p.layouts[2],
						*ld = &x->p.layouts[3];
	const int ta = x->p.desc.trans[0], tb = x->p.desc.trans[1];
	const int64_t m = (int64_t)ld->rows, n = (int64_t)ld->cols,
				  k = (int64_t)(ta ? la->rows : la->cols);
	const char *a = x->a + at * la->stride * size_of(la->type),
			   *b = x->b + at * lb->stride * size_of(lb->type),
			   *c = x->c + at * lc->stride * size_of(lc->type);
	char *d = x->d + at * ld->stride * size_of(ld->type);
	const int whole = la->type == R8I;
	float *fa = malloc((size_t)(m * k) * 4), *sum = malloc((size_t)m * 4); // [k][m]
	int32_t *ia = (int32_t *)fa, *isum = (int32_t *)sum;
	for (int64_t l = 0; l < k; l++)
		for (int64_t i = 0; i < m; i++) {
			const int64_t from = ta ? l + i * la->ld : i + l * la->ld;
			if (whole)
				ia[l * m + i] = ((const int8_t *)a)[from];
			else
				fa[l * m + i] = factor(x, a, la->type, from);
		}
	for (int64_t j = 0; j < n; j++) {
		memset(sum, 0, (size_t)m * 4);
		for (int64_t l = 0; l < k; l++) {
			const int64_t from = tb ? j + l * lb->ld : l + j * lb->ld;
			if (whole) {
				const int32_t v = ((const int8_t *)b)[from];
				for (int64_t i = 0; i < m; i++)
					isum[i] += ia[l * m + i] * v;
			} else {
				const float v = factor(x, b, lb->type, from);
				for (int64_t i = 0; i < m; i++)
					sum[i] += fa[l * m + i] * v;
				for (int64_t i = 0; x->divided && l == k / 2 && i < m; i++) {
					char part[4];
					store(part, ld->type, 0, sum[i]);
					sum[i] = load(part, ld->type, 0);
				}
			}
		}
		for (int64_t i = 0; i < m; i++) {
			const int64_t to = i + j * ld->ld, from = i + j * lc->ld;
			if (whole) {
				int32_t v = x->alpha.i * isum[i];
				((int32_t *)d)[to] = x->beta.i ? v + x->beta.i * ((const int32_t *)c)[from] : v;
			} else {
				float v = x->alpha.f * sum[i];
				if (x->beta.f != 0)
					v += x->beta.f * load(c, lc->type, from);
				store(d, ld->type, to, v);
			}
		}
	}
	free(fa);
	free(sum);
}
static const char *carry_out(void *args)
{
	const struct product *x = args;
	for (int64_t i = 0; i < x->p.layouts[3].batch; i++)
		multiply(x, i);
	return NULL;
}

// extent is the bytes from the first element of a matrix, or of a batch, to the end of its last.
static uint64_t extent(const struct layout *l)
{
	const int64_t one = (int64_t)(l->cols - 1) * l->ld + (int64_t)l->rows;
	return (uint64_t)((l->batch - 1) * l->stride + one) * (uint64_t)size_of(l->type);
}
static int overlap(const void *p, const struct layout *a, const void *q, const struct layout *b)
{
	const uintptr_t x = (uintptr_t)p, y = (uintptr_t)q;
	return x < y + extent(b) && y < x + extent(a);
}

int cublasLtMatmul(struct handle *h, const struct desc *desc, const void *alpha, const void *a,
                   const struct layout *la, const void *b, const struct layout *lb,
                   const void *beta, const void *c, const struct layout *lc, void *d,
                   const struct layout *ld, const struct algo *algo, void *workspace, size_t bytes,
                   uintptr_t stream)
{
	CALL;
	struct product x = {.p = problem_of(desc, la, lb, lc, ld), .a = a, .b = b, .c = c, .d = d};
	x.divided = algo && algo->divided;
	memcpy(&x.alpha, alpha, 4);
	memcpy(&x.beta, beta, 4);
	if (!h || !algo || h->device != driver.device())
		return INVALID_VALUE;
	const int reads_c = x.beta.i != 0;
	const void *at[4] = {a, b, c, d};
	for (int i = 0; i < 4; i++)
		if ((i != 2 || reads_c) && !driver.inside((uintptr_t)at[i], extent(&x.p.layouts[i])))
			return EXECUTION_FAILED;
	for (int i = 0; i < 2; i++)
		if (overlap(d, ld, at[i], &x.p.layouts[i]))
			return INVALID_VALUE;
	if (reads_c && overlap(d, ld, c, lc) && (c != d || memcmp(lc, ld, sizeof *lc) != 0))
		return INVALID_VALUE;
	for (int i = 0; i < 4; i++) { // the alignments that the algorithm was asked for
		const uintptr_t p = (uintptr_t)at[i];
		x.p.alignment[i] = p % 256 ? (uint32_t)(p & -p) : 256;
	}
	if (hash(&x.p) != algo->problem || algo->number < 1 || algo->number > 2 ||
	    bytes < algo->workspace || (uintptr_t)workspace % 256 ||
	    !driver.inside((uintptr_t)workspace, algo->workspace))
		return INVALID_VALUE;
	if (getenv("FAKE_CUBLAS_REFUSE") && (int)algo->number <= atoi(getenv("FAKE_CUBLAS_REFUSE")))
		return NOT_SUPPORTED;
	return driver.queue(stream, carry_out, &x, sizeof x) ? EXECUTION_FAILED : 0;
}
