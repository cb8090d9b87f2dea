// The forward of attention for training: out and lse from q, k and v.
#include "flash.cuh"

// One head of 128 queries: 32 of them a warp, two tiles of 16. Keys come BK at a time, in two
// buffers.
template <int D, int BK> struct Forward {
	enum { Queries = 128, M = 2, Stride = 2 * D + 16, Tile = BK * Stride, Kept = D <= 64 };

	float out[M][D / 8][4], top[M][2], sum[M][2];
	uint32_t q[M][D / 16][4]; // if Kept: else they come from shared memory each time
	int places[M][2], starts[M][2];

	template <bool Edge>
	NC_METHOD void keys(nc_place queries, nc_place k, nc_place v, int first, int earliest, int last,
	                    int lane, float exponent)
	{
		const int t = lane % 4;
		// Sixteen keys that all stand in front of the warp's documents, or behind its queries, are
		// left out.
		const int from = Edge ? earliest - first - 15 : 0, to = Edge ? last - first : BK;
		float s[M][BK / 8][4];
		zero(s);
		NC_UNROLL for (int c = 0; c < D / 16; c++) {
			if (!Kept)
				NC_UNROLL for (int m = 0; m < M; m++)
					nc_ldmatrix(q[m][c], queries + pairs<Stride>(lane) + 16 * m * Stride + 32 * c);
			NC_UNROLL for (int n = 0; n < BK / 16; n++) {
				if (Edge && (16 * n < from || 16 * n > to))
					continue;
				uint32_t b[4];
				nc_ldmatrix(b, k + columns<Stride>(lane) + 16 * n * Stride + 32 * c);
				NC_UNROLL for (int m = 0; m < M; m++) {
					nc_mma_f16(s[m][2 * n], q[m][c], b[0], b[1]);
					nc_mma_f16(s[m][2 * n + 1], q[m][c], b[2], b[3]);
				}
			}
		}
		NC_UNROLL for (int m = 0; m < M; m++)
			NC_UNROLL for (int r = 0; r < 2; r++) { // rows g and g+8
				if (Edge)
					NC_UNROLL for (int n = 0; n < BK / 8; n++)
						NC_UNROLL for (int j = 0; j < 2; j++) {
							const int key = first + 8 * n + 2 * t + j;
							if (key > places[m][r] || key < starts[m][r])
								s[m][n][2 * r + j] = -INFINITY;
						}
				float best = s[m][0][2 * r];
				NC_UNROLL for (int n = 0; n < BK / 8; n++)
					best = fmaxf(best, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
				best = fmaxf(quad_max(best), top[m][r]);
				// A row that has seen no key yet has exp2(-inf - 0) = 0 everywhere.
				const float base = Edge && best == -INFINITY ? 0.0f : best * exponent;
				const float keep = nc_exp2(fmaf(top[m][r], exponent, -base));
				top[m][r] = best;
				float total = 0;
				NC_UNROLL for (int n = 0; n < BK / 8; n++)
					NC_UNROLL for (int j = 0; j < 2; j++) {
						const float p = nc_exp2(fmaf(s[m][n][2 * r + j], exponent, -base));
						s[m][n][2 * r + j] = p;
						total = total + p;
					}
				sum[m][r] = fmaf(sum[m][r], keep, total); // of this lane's keys
				NC_UNROLL for (int n = 0; n < D / 8; n++)
					NC_UNROLL for (int j = 0; j < 2; j++)
						out[m][n][2 * r + j] = out[m][n][2 * r + j] * keep;
			}
		NC_UNROLL for (int c = 0; c < BK / 16; c++) {
			if (Edge && (16 * c < from || 16 * c > to))
				continue;
			uint32_t p[M][4];
			NC_UNROLL for (int m = 0; m < M; m++)
				NC_UNROLL for (int i = 0; i < 4; i++)
					p[m][i] = nc_pack_half(s[m][2 * c + i / 2][i % 2 * 2],
					                       s[m][2 * c + i / 2][i % 2 * 2 + 1]);
			NC_UNROLL for (int n = 0; n < D / 16; n++) {
				uint32_t b[4];
				nc_ldmatrix_trans(b, v + pairs<Stride>(lane) + 16 * c * Stride + 32 * n);
				NC_UNROLL for (int m = 0; m < M; m++) {
					nc_mma_f16(out[m][2 * n], p[m], b[0], b[1]);
					nc_mma_f16(out[m][2 * n + 1], p[m], b[2], b[3]);
				}
			}
		}
	}

	// Shared memory: queries [128], then twice keys and values [BK].
	NC_METHOD void run(const FlashArgs &a)
	{
		NC_DYNAMIC(char, memory);
		const int tid = (int)threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4,
				  t = lane % 4;
		// The last queries see the most keys: they begin first.
		const int block = (int)(gridDim.x - 1 - blockIdx.x) * Queries, head = (int)blockIdx.y;
		const int64_t row = (int64_t)blockIdx.z * a.seq,
					  ld = (int64_t)(a.heads + 2 * a.kv_heads) * a.dim;
		const int32_t *begin = a.starts + row;
		const uint16_t *qkv = a.qkv + row * ld;
		const uint16_t *k = qkv + (int64_t)(a.heads + head / (a.heads / a.kv_heads)) * a.dim,
					   *v = k + (int64_t)a.kv_heads * a.dim;
		const int last = block + Queries < a.seq ? block + Queries - 1 : a.seq - 1;
		int first = start(begin, block, a.seq) / BK * BK;
		const nc_place queries = nc_place_of(memory), stage = queries + Queries * Stride;
		Copy<D> copy;
		copy.begin(tid, a.dim);
		const int jump = copy.Step * (int)ld;
		int here = (first + copy.row) * (int)ld + copy.column; // of k and v
		copy.template tile<Queries>(queries, qkv + head * a.dim,
		                            (block + copy.row) * (int)ld + copy.column, jump, a.seq - block);
		copy.template tile<BK>(stage, k, here, jump, a.seq - first);
		copy.template tile<BK>(stage + Tile, v, here, jump, a.seq - first);
		nc_commit();

		const int mine = block + 16 * M * warp, mine_last = mine + 16 * M - 1;
		const int earliest = start(begin, mine, a.seq), latest = start(begin, mine_last, a.seq);
		NC_UNROLL for (int m = 0; m < M; m++)
			NC_UNROLL for (int r = 0; r < 2; r++) {
				places[m][r] = mine + 16 * m + 8 * r + g;
				starts[m][r] = start(begin, places[m][r], a.seq);
				top[m][r] = -INFINITY, sum[m][r] = 0;
			}
		zero(out);
		const nc_place own = queries + 16 * M * warp * Stride;
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
			if (Kept && step == 0)
				NC_UNROLL for (int m = 0; m < M; m++)
					NC_UNROLL for (int c = 0; c < D / 16; c++)
						nc_ldmatrix(q[m][c], own + pairs<Stride>(lane) + 16 * m * Stride + 32 * c);
			if (mine >= a.seq || first > mine_last || next <= earliest)
				continue;
			if (next - 1 <= mine && first >= latest)
				keys<false>(own, at, at + Tile, first, earliest, mine_last, lane, a.exponent);
			else
				keys<true>(own, at, at + Tile, first, earliest, mine_last, lane, a.exponent);
		}
		NC_UNROLL for (int m = 0; m < M; m++)
			NC_UNROLL for (int r = 0; r < 2; r++) {
				const float total = quad_sum(sum[m][r]), inverse = 1.0f / total;
				const int place = places[m][r];
				if (place >= a.seq)
					continue;
				if (t == 0)
					a.lse[head * a.tokens + row + place] =
						top[m][r] * a.exponent + log2f(total);
				float *dst = a.out + ((row + place) * a.heads + head) * a.dim + 2 * t;
				NC_UNROLL for (int n = 0; n < D / 8; n++)
					if (8 * n < a.dim)
						store2(dst + 8 * n, out[m][n][2 * r] * inverse,
						       out[m][n][2 * r + 1] * inverse);
			}
	}
};

NC_BOUNDED(flash_forward_32, FlashArgs, Threads, 2)
{
	Forward<32, 64> f;
	f.run(a);
}
NC_BOUNDED(flash_forward_64, FlashArgs, Threads, 2)
{
	Forward<64, 64> f;
	f.run(a);
}
NC_BOUNDED(flash_forward_128, FlashArgs, Threads, 2)
{
	Forward<128, 32> f;
	f.run(a);
}
