// The backward of attention for training: dq, dk and dv from dout. Scores are computed again: one
// kernel sums dq over keys, and leaves delta = dout·out of each query; the other then sums dk and
// dv over queries.
#include "flash.cuh"

// dq of one head of 64·M queries, 16·M of them a warp, in M tiles of 16. Keys come BK at a time,
// in two buffers. The gradient dout of a query is kept in half precision, divided by a power of
// two near its largest element, so that the values need not be rounded for their product.
template <int D, int BK, int M> struct Queries {
	enum { Own = 64 * M, Stride = 2 * D + 16, Tile = BK * Stride };

	float dq[M][D / 8][4], lse[M][2], delta[M][2], unit[M][2];
	uint32_t q[M][D / 16][4], dout[M][D / 16][4];
	int places[M][2], starts[M][2];

	template <bool Edge>
	NC_METHOD void keys(nc_place k, nc_place v, int first, int earliest, int last, int lane,
	                    float exponent)
	{
		const int t = lane % 4;
		const nc_place k_columns = k + columns<Stride>(lane), k_pairs = k + pairs<Stride>(lane),
					   v_columns = v + columns<Stride>(lane);
		// Keys in front of the warp's documents, or behind its queries, are left out.
		const int begin = Edge && earliest > first ? (earliest - first) / 16 : 0;
		const int end = Edge && first + BK > last ? (last - first) / 16 + 1 : BK / 16;
		NC_UNROLL_BY(1) for (int c = begin; c < end; c++)
		{
			float s[M][2][4], dp[M][2][4];
			zero(s), zero(dp);
			NC_UNROLL for (int x = 0; x < D / 16; x++) {
				uint32_t b[4], d[4];
				nc_ldmatrix(b, k_columns + 16 * c * Stride + 32 * x);
				nc_ldmatrix(d, v_columns + 16 * c * Stride + 32 * x);
				NC_UNROLL for (int m = 0; m < M; m++) {
					nc_mma_f16(s[m][0], q[m][x], b[0], b[1]);
					nc_mma_f16(s[m][1], q[m][x], b[2], b[3]);
					nc_mma_f16(dp[m][0], dout[m][x], d[0], d[1]);
					nc_mma_f16(dp[m][1], dout[m][x], d[2], d[3]);
				}
			}
			uint32_t ds[M][4];
			NC_UNROLL for (int m = 0; m < M; m++)
				NC_UNROLL for (int n = 0; n < 2; n++)
					NC_UNROLL for (int r = 0; r < 2; r++) {
						float d[2];
						NC_UNROLL for (int j = 0; j < 2; j++) {
							float p =
								nc_exp2(fmaf(s[m][n][2 * r + j], exponent, -lse[m][r]));
							const int key = first + 16 * c + 8 * n + 2 * t + j;
							if (Edge && (key > places[m][r] || key < starts[m][r]))
								p = 0;
							d[j] = p * fmaf(dp[m][n][2 * r + j], unit[m][r], -delta[m][r]);
						}
						ds[m][2 * n + r] = nc_pack_bf16(d[0], d[1]);
					}
			NC_UNROLL for (int n = 0; n < D / 16; n++) {
				uint32_t b[4];
				nc_ldmatrix_trans(b, k_pairs + 16 * c * Stride + 32 * n);
				NC_UNROLL for (int i = 0; i < 4; i++)
					b[i] = nc_half_to_bf16(b[i]);
				NC_UNROLL for (int m = 0; m < M; m++) {
					nc_mma_bf16(dq[m][2 * n], ds[m], b[0], b[1]);
					nc_mma_bf16(dq[m][2 * n + 1], ds[m], b[2], b[3]);
				}
			}
		}
	}

	// dot is the product of the rows g and g+8 of dout[m], still bfloat16, with those of out: x
	// and y from the lane's first element on.
	NC_METHOD void dot(int m, const float *x, const float *y, int dim)
	{
		float s[2] = {0, 0};
		NC_UNROLL for (int c = 0; c < D / 16; c++)
			NC_UNROLL for (int i = 0; i < 4; i++) {
				if (16 * c >= dim)
					continue;
				const uint64_t two = *(const uint64_t *)((i % 2 ? y : x) + 16 * c + i / 2 * 8);
				const uint32_t d = dout[m][c][i];
				s[i % 2] = fmaf(__uint_as_float((uint32_t)two), __uint_as_float(d << 16), s[i % 2]);
				s[i % 2] = fmaf(__uint_as_float((uint32_t)(two >> 32)),
				                __uint_as_float(d & 0xffff0000u), s[i % 2]);
			}
		delta[m][0] = quad_sum(s[0]), delta[m][1] = quad_sum(s[1]);
	}

	// rescale turns the rows g and g+8 of dout[m] from bfloat16 into half precision.
	NC_METHOD void rescale(int m)
	{
		NC_UNROLL for (int r = 0; r < 2; r++) {
			float top = 0;
			NC_UNROLL for (int x = 0; x < D / 16; x++)
				NC_UNROLL for (int i = 0; i < 2; i++) {
					const uint32_t two = dout[m][x][2 * i + r];
					top = fmaxf(top, fmaxf(__uint_as_float(two << 16 & 0x7fffffffu),
					                       __uint_as_float(two & 0x7fff0000u)));
				}
			int e = (int)(__float_as_uint(quad_max(top)) >> 23); // 2^(e-127) <= top < 2^(e-126)
			e = e < 30 ? 30 : e > 224 ? 224 : e;
			const float shrink = __uint_as_float((uint32_t)(254 - e) << 23);
			unit[m][r] = __uint_as_float((uint32_t)e << 23);
			NC_UNROLL for (int x = 0; x < D / 16; x++)
				NC_UNROLL for (int i = 0; i < 2; i++) {
					uint32_t &two = dout[m][x][2 * i + r];
					two = nc_pack_half(__uint_as_float(two << 16) * shrink,
					                   __uint_as_float(two & 0xffff0000u) * shrink);
				}
		}
	}

	// Shared memory: twice keys and values [BK].
	NC_METHOD void run(const FlashArgs &a)
	{
		NC_DYNAMIC(char, memory);
		const int tid = (int)threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4,
				  t = lane % 4;
		const int block = (int)(gridDim.x - 1 - blockIdx.x) * Own, head = (int)blockIdx.y;
		const int64_t row = (int64_t)blockIdx.z * a.seq,
					  ld = (int64_t)(a.heads + 2 * a.kv_heads) * a.dim,
					  wide = (int64_t)a.heads * a.dim;
		const int32_t *begin = a.starts + row;
		const uint16_t *qkv = a.qkv + row * ld;
		const uint16_t *k = qkv + (int64_t)(a.heads + head / (a.heads / a.kv_heads)) * a.dim,
					   *v = k + (int64_t)a.kv_heads * a.dim;
		const int last = block + Own < a.seq ? block + Own - 1 : a.seq - 1;
		int first = start(begin, block, a.seq) / BK * BK;
		const int mine = block + 16 * M * warp, mine_last = mine + 16 * M - 1;
		const int earliest = start(begin, mine, a.seq), latest = start(begin, mine_last, a.seq);
		NC_UNROLL for (int m = 0; m < M; m++) {
			const int at = mine + 16 * m < a.seq ? mine + 16 * m : block;
			left<D>(q[m], qkv + at * ld + head * a.dim, ld, a.seq - at, a.dim, lane);
			left<D>(dout[m], a.dout + (row + at) * wide + head * a.dim, wide, a.seq - at, a.dim,
			        lane);
		}
		const nc_place stage = nc_place_of(memory);
		Copy<D> copy;
		copy.begin(tid, a.dim);
		const int jump = copy.Step * (int)ld;
		int here = (first + copy.row) * (int)ld + copy.column; // of k and v
		copy.template tile<BK>(stage, k, here, jump, a.seq - first);
		copy.template tile<BK>(stage + Tile, v, here, jump, a.seq - first);
		nc_commit();
		NC_UNROLL for (int m = 0; m < M; m++) {
			const float *rows[2];
			NC_UNROLL for (int r = 0; r < 2; r++) {
				const int place = mine + 16 * m + 8 * r + g;
				const int64_t token = row + (place < a.seq ? place : a.seq - 1);
				places[m][r] = place;
				starts[m][r] = start(begin, place, a.seq);
				lse[m][r] = a.lse[head * a.tokens + token];
				rows[r] = a.out + (token * a.heads + head) * a.dim + 2 * t;
			}
			dot(m, rows[0], rows[1], a.dim);
			NC_UNROLL for (int r = 0; r < 2; r++)
				if (t == 0 && places[m][r] < a.seq)
					a.delta[head * a.tokens + row + places[m][r]] = delta[m][r];
			rescale(m);
		}
		zero(dq);
		for (int step = 0; first <= last; step++, first += BK) {
			nc_await<0>();
			__syncthreads(); // these keys are there; those before them are done with
			const nc_place at = stage + step % 2 * 2 * Tile;
			const int next = first + BK;
			if (next <= last) {
				const nc_place to = stage + (1 - step % 2) * 2 * Tile;
				here += BK * (int)ld;
				copy.template tile<BK>(to, k, here, jump, a.seq - next);
				copy.template tile<BK>(to + Tile, v, here, jump, a.seq - next);
				nc_commit();
			}
			if (mine >= a.seq || first > mine_last || next <= earliest)
				continue;
			if (next - 1 <= mine && first >= latest)
				keys<false>(at, at + Tile, first, earliest, mine_last, lane, a.exponent);
			else
				keys<true>(at, at + Tile, first, earliest, mine_last, lane, a.exponent);
		}
		NC_UNROLL for (int m = 0; m < M; m++)
			NC_UNROLL for (int r = 0; r < 2; r++) {
				if (places[m][r] >= a.seq)
					continue;
				const int64_t at = ((row + places[m][r]) * a.heads + head) * a.dim + 2 * t;
				NC_UNROLL for (int n = 0; n < D / 8; n++)
					if (8 * n < a.dim)
						store_grads(a.dq, at + 8 * n, a.half_grads, dq[m][n][2 * r] * a.scale,
						            dq[m][n][2 * r + 1] * a.scale);
			}
	}
};

NC_BOUNDED(flash_queries_32, FlashArgs, Threads, 2)
{
	Queries<32, 64, 2> f;
	f.run(a);
}
NC_BOUNDED(flash_queries_64, FlashArgs, Threads, 2)
{
	Queries<64, 64, 2> f;
	f.run(a);
}
NC_BOUNDED(flash_queries_128, FlashArgs, Threads, 2)
{
	Queries<128, 32, 1> f;
	f.run(a);
}

// dk and dv of one head of 64·M keys, 16·M of them a warp, in M tiles of 16: over the heads of its
// group and the queries that see them, BQ at a time, in two buffers. Everything is transposed:
// rows are keys, columns are queries, so that probabilities and their gradients are left
// factors as they come.
template <int D, int BQ, int M> struct Keys {
	enum { Own = 64 * M, Stride = 2 * D + 16, Tile = BQ * Stride, Stage = 2 * Tile + 12 * BQ };

	float dk[M][D / 8][4], dv[M][D / 8][4];
	uint32_t k[M][D / 16][4], v[M][D / 16][4];

	// One tile of queries, the first of them at place `at`; q and dout are where the tile's
	// rows of them begin, rows their lse, delta and starts [BQ] each.
	template <bool Edge>
	NC_METHOD void queries(nc_place q, nc_place dout, const float *rows, int at, int key, int lane,
	                       float exponent)
	{
		const int g = lane / 4, t = lane % 4;
		const nc_place q_columns = q + columns<Stride>(lane), q_pairs = q + pairs<Stride>(lane),
					   d_columns = dout + columns<Stride>(lane),
					   d_pairs = dout + pairs<Stride>(lane);
		// Queries in front of the keys see none of them.
		NC_UNROLL_BY(1) for (int c = Edge && key > at ? (key - at) / 16 : 0; c < BQ / 16; c++)
		{
			// The documents of further queries begin behind the warp's keys.
			if (Edge && ((const int *)rows)[2 * BQ + 16 * c] > key + 16 * M - 1)
				break;

			float s[M][2][4], dp[M][2][4];
			zero(s), zero(dp);
			NC_UNROLL for (int x = 0; x < D / 16; x++) {
				uint32_t b[4], d[4];
				nc_ldmatrix(b, q_columns + 16 * c * Stride + 32 * x);
				nc_ldmatrix(d, d_columns + 16 * c * Stride + 32 * x);
				NC_UNROLL for (int m = 0; m < M; m++) {
					nc_mma_f16(s[m][0], k[m][x], b[0], b[1]);
					nc_mma_f16(s[m][1], k[m][x], b[2], b[3]);
					nc_mma_bf16(dp[m][0], v[m][x], d[0], d[1]);
					nc_mma_bf16(dp[m][1], v[m][x], d[2], d[3]);
				}
			}
			NC_UNROLL for (int n = 0; n < 2; n++)
				NC_UNROLL for (int j = 0; j < 2; j++) {
					const int i = 16 * c + 8 * n + 2 * t + j;
					const float lse = rows[i], delta = rows[BQ + i];
					const int from = Edge ? ((const int *)rows)[2 * BQ + i] : 0;
					NC_UNROLL for (int m = 0; m < M; m++)
						NC_UNROLL for (int r = 0; r < 2; r++) {
							float p = nc_exp2(fmaf(s[m][n][2 * r + j], exponent, -lse));
							const int own = key + 16 * m + 8 * r + g;
							if (Edge && (own > at + i || own < from))
								p = 0;
							s[m][n][2 * r + j] = p;
							dp[m][n][2 * r + j] = p * (dp[m][n][2 * r + j] - delta);
						}
				}
			uint32_t p[M][4], ds[M][4];
			NC_UNROLL for (int m = 0; m < M; m++)
				NC_UNROLL for (int i = 0; i < 4; i++) {
					p[m][i] = nc_pack_bf16(s[m][i / 2][i % 2 * 2], s[m][i / 2][i % 2 * 2 + 1]);
					ds[m][i] = nc_pack_bf16(dp[m][i / 2][i % 2 * 2], dp[m][i / 2][i % 2 * 2 + 1]);
				}
			NC_UNROLL for (int n = 0; n < D / 16; n++) {
				uint32_t b[4], d[4];
				nc_ldmatrix_trans(d, d_pairs + 16 * c * Stride + 32 * n);
				nc_ldmatrix_trans(b, q_pairs + 16 * c * Stride + 32 * n);
				NC_UNROLL for (int i = 0; i < 4; i++)
					b[i] = nc_half_to_bf16(b[i]);
				NC_UNROLL for (int m = 0; m < M; m++) {
					nc_mma_bf16(dv[m][2 * n], p[m], d[0], d[1]);
					nc_mma_bf16(dv[m][2 * n + 1], p[m], d[2], d[3]);
					nc_mma_bf16(dk[m][2 * n], ds[m], b[0], b[1]);
					nc_mma_bf16(dk[m][2 * n + 1], ds[m], b[2], b[3]);
				}
			}
		}
	}

	// Where a thread finds its part of the next tile of queries: places relative to the row's.
	struct Source {
		Copy<D> copy;
		const uint16_t *qkv, *grads; // a.qkv and a.dout of the row
		const float *lse, *delta;
		const int32_t *starts;
		int ld, wide, q, dout, of, first;

		NC_METHOD void begin(const FlashArgs &a, int64_t row, int head, int place, int tid)
		{
			copy.begin(tid, a.dim);
			ld = (a.heads + 2 * a.kv_heads) * a.dim, wide = a.heads * a.dim;
			qkv = a.qkv + row * ld, grads = a.dout + row * wide;
			lse = a.lse + row, delta = a.delta + row, starts = a.starts + row;
			q = (place + copy.row) * ld + head * a.dim + copy.column;
			dout = (place + copy.row) * wide + head * a.dim + copy.column;
			of = head * (int)a.tokens + place + tid, first = place + tid;
		}
		// move goes that many tiles and heads on.
		NC_METHOD void move(const FlashArgs &a, int tiles, int heads)
		{
			q += tiles * BQ * ld + heads * a.dim;
			dout += tiles * BQ * wide + heads * a.dim;
			of += heads * (int)a.tokens + tiles * BQ, first += tiles * BQ;
		}
		// load begins to copy the tile, of which `rows` are in the row.
		NC_METHOD void load(nc_place to, int rows, int tid) const
		{
			copy.template tile<BQ>(to, qkv, q, copy.Step * ld, rows);
			copy.template tile<BQ>(to + Tile, grads, dout, copy.Step * wide, rows);
			if (tid < BQ) { // zeros beyond the row's end: p = 1 then meets a dout of 0
				const nc_place at = to + 2 * Tile + 4 * tid;
				nc_copy4(at, lse + of, tid < rows);
				nc_copy4(at + 4 * BQ, delta + of, tid < rows);
				nc_copy4(at + 8 * BQ, starts + first, tid < rows);
			}
			nc_commit();
		}
	};

	// Shared memory: twice queries, dout [BQ], and lse, delta, starts [BQ].
	NC_METHOD void run(const FlashArgs &a)
	{
		NC_DYNAMIC(char, memory);
		const int tid = (int)threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4,
				  t = lane % 4;
		// The first keys are seen by the most queries, and begin first as they are.
		const int block = (int)blockIdx.x * Own, kv_head = (int)blockIdx.y,
				  group = a.heads / a.kv_heads;
		const int64_t row = (int64_t)blockIdx.z * a.seq,
					  ld = (int64_t)(a.heads + 2 * a.kv_heads) * a.dim;
		const int block_last = block + Own < a.seq ? block + Own - 1 : a.seq - 1;
		const int first_head = kv_head * group;
		const nc_place stages = nc_place_of(memory);
		Source source;
		source.begin(a, row, first_head, block, tid);
		source.load(stages, a.seq - block, tid);

		const int mine = block + 16 * M * warp, mine_last = mine + 16 * M - 1;
		const bool any = mine < a.seq;
		NC_UNROLL for (int m = 0; m < M; m++) {
			const int at = any && mine + 16 * m < a.seq ? mine + 16 * m : block;
			const uint16_t *from = a.qkv + (row + at) * ld + (a.heads + kv_head) * a.dim;
			left<D>(k[m], from, ld, a.seq - at, a.dim, lane);
			left<D>(v[m], from + a.kv_heads * a.dim, ld, a.seq - at, a.dim, lane);
			NC_UNROLL for (int x = 0; x < D / 16; x++)
				NC_UNROLL for (int i = 0; i < 4; i++)
					v[m][x][i] = nc_half_to_bf16(v[m][x][i]);
		}
		zero(dk), zero(dv);
		// Tiles of queries until one begins in a document behind the last key: starts does
		// not descend.
		int tiles = 0;
		for (int i = lane; block + i * BQ < a.seq; i += 32)
			tiles += i == 0 || a.starts[row + block + i * BQ] <= block_last;
		for (int m = 16; m > 0; m /= 2)
			tiles += nc_shuffle_xor(tiles, m);
		const int steps = tiles * group;
		int tile = 0;
		for (int step = 0; step < steps; step++) {
			nc_await<0>();
			__syncthreads(); // these queries are there; those before them are done with
			const int at = block + tile * BQ;
			if (step + 1 < steps) {
				if (++tile < tiles)
					source.move(a, 1, 0);
				else
					source.move(a, 1 - tiles, 1), tile = 0;
				source.load(stages + (step + 1) % 2 * Stage, a.seq - block - tile * BQ, tid);
			}
			const nc_place q = stages + step % 2 * Stage;
			const float *rows = (const float *)(memory + step % 2 * Stage + 2 * Tile);
			const int *starts = (const int *)rows + 2 * BQ;
			const int last = at + BQ < a.seq ? BQ - 1 : a.seq - 1 - at;
			if (!any || at + last < mine || starts[0] > mine_last)
				continue;
			if (at >= mine_last && starts[last] <= mine)
				queries<false>(q, q + Tile, rows, at, mine, lane, a.exponent);
			else
				queries<true>(q, q + Tile, rows, at, mine, lane, a.exponent);
		}
		NC_UNROLL for (int m = 0; m < M; m++)
			NC_UNROLL for (int r = 0; r < 2; r++) {
				const int place = mine + 16 * m + 8 * r + g;
				if (place >= a.seq)
					continue;
				const int64_t at = ((row + place) * a.kv_heads + kv_head) * a.dim + 2 * t;
				NC_UNROLL for (int n = 0; n < D / 8; n++)
					if (8 * n < a.dim) {
						store_grads(a.dk, at + 8 * n, a.half_grads, dk[m][n][2 * r] * a.scale,
						            dk[m][n][2 * r + 1] * a.scale);
						store_grads(a.dv, at + 8 * n, a.half_grads, dv[m][n][2 * r],
						            dv[m][n][2 * r + 1]);
					}
			}
	}
};

NC_BOUNDED(flash_keys_32, FlashArgs, Threads, 2)
{
	Keys<32, 64, 2> f;
	f.run(a);
}
NC_BOUNDED(flash_keys_64, FlashArgs, Threads, 2)
{
	Keys<64, 64, 2> f;
	f.run(a);
}
NC_BOUNDED(flash_keys_128, FlashArgs, Threads, 2)
{
	Keys<128, 32, 1> f;
	f.run(a);
}
