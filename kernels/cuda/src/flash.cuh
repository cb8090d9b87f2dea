// Attention over rows of packed documents, for training: forward and backward without the
// matrix of scores in memory (Dao, FlashAttention-2, 2023), on the tensor cores of sm_80.
//
// A query at place i of its row sees the keys starts[i] to i. starts does not descend along
// a row, so a block of queries sees the keys from the start of its first query on, and a block
// of keys is seen by the queries that follow until one starts behind it.
//
// Scores have factors in half precision, as stored; the probabilities meet the values in half
// precision too. Gradients are bfloat16 factors. All sums are float32 and each result is
// summed by one thread in one order, so results do not depend on the schedule.
//
// Rows in shared memory are 16 bytes longer than their data: an odd number of 16 bytes, so that
// the eight rows of a ldmatrix lie in different banks. Where a head is shorter than D the
// rest is zeros, which add nothing.
#pragma once
#include "mma.cuh"

enum { Threads = 128 }; // of a block, four warps

struct FlashArgs {
	float *out;            // [tokens][heads·dim]
	float *lse;            // [heads][tokens], of the scores times scale·log2(e), to base 2
	void *dq, *dk, *dv;    // [tokens][heads·dim], [tokens][kv_heads·dim] twice
	float *delta;          // [heads][tokens]: dout·out
	const uint16_t *dout;  // [tokens][heads·dim], bfloat16
	const uint16_t *qkv;   // [tokens][(heads+2·kv_heads)·dim], half precision
	const int32_t *starts; // [tokens]
	int64_t tokens;
	int32_t seq, dim, heads, kv_heads; // seq: tokens of a row
	float scale, exponent;             // exponent: scale·log2(e)
	int32_t half_grads, pad;           // dq, dk and dv are bfloat16, else float32
};

// Where a lane's row of a ldmatrix begins in a tile of rows of Stride bytes. Pairs: a left
// factor, or a right one that is transposed: 16 rows, then the next 8 columns of them.
// Columns: a right factor whose columns are the tile's rows: 8 rows with 8 columns and the
// next 8, then the next 8 rows.
template <int Stride> NC_DEVICE int pairs(int lane) { return lane % 16 * Stride + lane / 16 * 16; }
template <int Stride> NC_DEVICE int columns(int lane)
{
	return (lane / 16 * 8 + lane % 8) * Stride + lane / 8 % 2 * 16;
}

// Copy is how a thread takes its part in copying tiles of rows of D elements, of which dim are
// there: 16 bytes of every Step-th row.
template <int D> struct Copy {
	enum { Chunks = D / 8, Step = Threads / Chunks, Stride = 2 * D + 16 };
	int row, column, place; // its first row, its column there, and where that is in a tile
	bool inside;
	NC_METHOD void begin(int tid, int dim)
	{
		row = tid / Chunks, column = tid % Chunks * 8;
		place = row * Stride + 2 * column;
		inside = column < dim;
	}
	// tile begins to copy the next Rows rows, of which `rows` are there; the others become
	// zeros. This thread's first element is src[at], that of Step rows further src[at + jump].
	template <int Rows>
	NC_METHOD void tile(nc_place dst, const uint16_t *src, int at, int jump, int rows) const
	{
		NC_UNROLL for (int j = 0; j < Rows / Step; j++)
			nc_copy16(dst + place + j * Step * Stride, src + (at + j * jump),
			          inside && row + j * Step < rows);
	}
};

// left loads a left factor [16][D] whose row 0 is at src; rows beyond the last one are the last
// one, columns beyond dim are 0.
template <int D>
NC_DEVICE void left(uint32_t a[D / 16][4], const uint16_t *src, int64_t ld, int rows, int dim,
                    int lane)
{
	const int g = lane / 4, t = lane % 4;
	const uint16_t *x = src + (g < rows ? g : rows - 1) * ld + 2 * t,
				   *y = src + (g + 8 < rows ? g + 8 : rows - 1) * ld + 2 * t;
	NC_UNROLL for (int k = 0; k < D / 16; k++) {
		const bool inside = 16 * k < dim;
		a[k][0] = inside ? *(const uint32_t *)(x + 16 * k) : 0;
		a[k][1] = inside ? *(const uint32_t *)(y + 16 * k) : 0;
		a[k][2] = inside ? *(const uint32_t *)(x + 16 * k + 8) : 0;
		a[k][3] = inside ? *(const uint32_t *)(y + 16 * k + 8) : 0;
	}
}

// start is where the document of place i of a row begins, at most i whatever the data says. Beyond
// the row's end it is that of its last token.
NC_DEVICE int start(const int32_t *starts, int i, int seq)
{
	i = i < seq ? i : seq - 1;
	const int s = starts[i];
	return s < 0 ? 0 : s < i ? s : i;
}

NC_DEVICE void store2(float *dst, float x, float y) // dst is aligned to 8 bytes
{
	*(uint64_t *)dst = __float_as_uint(x) | (uint64_t)__float_as_uint(y) << 32;
}

// store_grads writes elements i and i+1, i even, of a gradient.
NC_DEVICE void store_grads(void *dst, int64_t i, bool half, float x, float y)
{
	if (half)
		((uint32_t *)dst)[i / 2] = nc_pack_bf16(x, y);
	else
		store2((float *)dst + i, x, y);
}

template <int A, int B> NC_DEVICE void zero(float (&x)[A][B][4])
{
	NC_UNROLL for (int a = 0; a < A; a++)
		NC_UNROLL for (int b = 0; b < B; b++)
			x[a][b][0] = 0, x[a][b][1] = 0, x[a][b][2] = 0, x[a][b][3] = 0;
}

NC_DEVICE float quad_max(float v)
{
	v = fmaxf(v, nc_shuffle_xor(v, 1));
	return fmaxf(v, nc_shuffle_xor(v, 2));
}
NC_DEVICE float quad_sum(float v)
{
	v = v + nc_shuffle_xor(v, 1);
	return v + nc_shuffle_xor(v, 2);
}
