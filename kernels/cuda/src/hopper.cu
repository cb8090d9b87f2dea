// Products of ternary matrices with many tokens on GPUs of compute capability 9.0, to the bit
// those of ternary_gemm.
//
// A block has 128 rows by 128 tokens at a time: two groups of four warps with 64 rows each, and
// three warps that feed them. Activations come by the copying engine as they are, 128 columns of
// 128 tokens a stage; weights as tiles, 4 KiB a stage. Where all columns of the tokens
// fit (ten stages: 1280 columns) they stay while the rows pass.
//
// Budget of a stage, for each quarter of a multiprocessor and per group of warps: 256 cycles of
// the tensor core. Instructions of a warp: 64 results become floats and are added
// (FADD, FFMA: 128), sums begin at what makes them floats (8 LDS, 32 MOV), weights are unpacked
// (8 LDS, 16 shifts, 16 LOP3), about 30 around them: near 240 of the same 256 issue slots. So the
// products of one half of the tokens run while the other half's results are added, and
// unpacking a stage is done under the products of the one before. Registers: 64 sums, 64
// results, 2·16 weights, of 232: the four other warps, three of which feed, give theirs away.
#include "hopper.cuh"

#if !defined(__CUDACC_RTC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

enum {
	Threads = 384,
	Rows = 128,
	Tokens = 128,
	Stage = 128, // columns
	QSlots = 10,
	WSlots = 8,
	QBytes = Tokens * Stage,
	FourBytes = Rows / 16 * 256, // four tiles of each 16 rows
	ScaleBytes = 32,             // of a group and 16 rows
	WBytes = 2 * FourBytes + 2 * Rows / 16 * ScaleBytes,
	SumBytes = 2 * Tokens * 4,
	Tables = 16,       // of factors: more than the tokens that feed_sums is ahead of run
	Begin = 0x4b400000 // 1.5·2^23: with a small integer added, the bits of a float that much larger
};

struct HopperArgs {
	nc_map map;          // of q: boxes of Stage columns and Tokens rows
	nc_map tiles;        // [blocks][col_tiles·64]: boxes of four tiles of eight blocks
	nc_map scales;       // [blocks][groups·32], half precision: one group, or two, of eight blocks
	float *dst;          // [tokens][ldd]
	const int32_t *sums; // [tokens][groups]
	const float *scale;  // [tokens]
	int32_t *failed;     // set if the block waits for ever; null: it traps
	float gain;
	int32_t rows, tokens, group, groups, col_tiles, ldd;
	int32_t pairs; // 1: two rows of dst are written at once
};

// Memory is the parts of the dynamic shared memory.
struct Memory {
	nc_place q, w, sums;
	const char *weights; // w
	int32_t *starts;     // sums
	float *factors;      // of the tokens' results
	nc_place q_full, q_empty, w_full, w_empty;
	int32_t *failed;
	volatile int *over; // a wait of the block had no end
};

// wait waits for the end of a phase. It gives up after some seconds, or a minute.
NC_DEVICE void wait(const Memory &m, nc_place barrier, uint32_t parity)
{
	if (nc_passed(barrier, parity))
		return;
	const int64_t from = nc_clock();
	while (!nc_passed(barrier, parity)) {
		if (*m.over)
			return;
		// Other programs or a debugger may hold the GPU: only the check on loading is hasty.
		if (nc_clock() - from > (m.failed ? nc_patience : 16 * nc_patience)) {
			if (!m.failed)
				nc_trap();
			*m.failed = 1;
			*m.over = 1;
		}
	}
}

// Walk goes over the stages of a block's pieces, [Rows] by [Tokens] each, row by row of
// pieces. Both sides of the ring do so.
struct Walk {
	int stages, row_pieces, piece, last;
	bool stay;               // all columns of the tokens are in the slots
	int row0, token0;        // where the piece begins
	bool fresh, leaves;      // it is the first, the last with its tokens in the slots
	uint32_t w, q, segments; // stages so far, and tokens that have left
	uint32_t tables;         // tokens that have come

	NC_METHOD bool next(bool first)
	{
		if (!first)
			piece++, segments += leaves;
		if (piece >= last)
			return false;
		const int above = piece / row_pieces, beside = piece % row_pieces;
		row0 = beside * Rows, token0 = above * Tokens;
		fresh = !stay || first || beside == 0;
		tables += fresh;
		leaves = !stay || piece + 1 == last || beside + 1 == row_pieces;
		return true;
	}
	NC_METHOD uint32_t factors() const { return tables % Tables * Tokens; }
	NC_METHOD uint32_t q_slot(int k) const { return stay ? (uint32_t)k : q % QSlots; }
	NC_METHOD uint32_t q_parity() const { return (stay ? segments : q / QSlots) & 1; }
};

NC_DEVICE Walk walk(const HopperArgs &a)
{
	Walk s = {};
	s.stages = (a.col_tiles + Stage / 16 - 1) / (Stage / 16);
	s.row_pieces = (a.rows + Rows - 1) / Rows;
	const int64_t pieces = (int64_t)s.row_pieces * ((a.tokens + Tokens - 1) / Tokens);
	s.piece = (int)(blockIdx.x * pieces / gridDim.x);
	s.last = (int)((blockIdx.x + 1) * pieces / gridDim.x);
	s.stay = s.stages <= QSlots;
	return s;
}

// parts is the number of groups that a stage has which begins in a group: two if they are of 64
// columns, else one, which may be longer than the stage.
NC_DEVICE int parts(const HopperArgs &a, int group)
{
	return a.group < Stage && group + 1 < a.groups ? 2 : 1;
}

// Three warps fill the slots, so that none of them is behind the tensor cores.

// feed_weights fills those of tiles and scales: one thread. What is outside the matrix becomes 0.
NC_DEVICE void feed_weights(const HopperArgs &a, const Memory &m)
{
	Walk s = walk(a);
	const int groups = a.group < Stage && a.groups > 1 ? 2 : 1; // in a box of scales
	for (bool more = s.next(true); more; more = s.next(false))
		for (int k = 0; k < s.stages; k++, s.w++) {
			const uint32_t slot = s.w % WSlots;
			const nc_place full = m.w_full + 8 * slot, to = m.w + slot * WBytes;
			wait(m, m.w_empty + 8 * slot, (s.w / WSlots & 1) ^ 1);
			nc_expect(full, 2 * FourBytes + groups * Rows / 16 * ScaleBytes);
			nc_tensor(to, &a.tiles, 512 * k, s.row0 / 16, full);
			nc_tensor(to + FourBytes, &a.tiles, 512 * k + 256, s.row0 / 16, full);
			nc_tensor(to + 2 * FourBytes, &a.scales, k * Stage / a.group * ScaleBytes, s.row0 / 16,
			          full);
		}
}

// feed_tokens fills those of activations: one thread.
NC_DEVICE void feed_tokens(const HopperArgs &a, const Memory &m)
{
	Walk s = walk(a);
	for (bool more = s.next(true); more; more = s.next(false))
		for (int k = 0; s.fresh && k < s.stages; k++, s.q++) {
			const uint32_t slot = s.q_slot(k);
			const nc_place full = m.q_full + 8 * slot;
			wait(m, m.q_empty + 8 * slot, s.q_parity() ^ 1);
			nc_expect(full, QBytes);
			nc_tensor(m.q + slot * QBytes, &a.map, k * Stage, s.token0, full);
		}
}

// feed_sums writes where the sums of the tokens begin, and their factors.
NC_DEVICE void feed_sums(const HopperArgs &a, const Memory &m, int lane)
{
	Walk s = walk(a);
	for (bool more = s.next(true); more; more = s.next(false))
		for (int k = 0; s.fresh && k < s.stages; k++, s.q++) {
			const uint32_t slot = s.q_slot(k);
			const int group = k * Stage / a.group, count = parts(a, group);
			int32_t *starts = m.starts + slot * (SumBytes / 4);
			wait(m, m.q_empty + 8 * slot, s.q_parity() ^ 1);
			for (int u = 0; u < count; u++)
				for (int i = 0; i < Tokens / 32; i++) {
					const int n = lane + 32 * i, token = s.token0 + n;
					const int32_t sum =
						token < a.tokens ? a.sums[(int64_t)token * a.groups + group + u] : 0;
					starts[u * Tokens + n] = Begin - sum;
				}
			for (int i = 0; k == 0 && i < Tokens / 32; i++) {
				const int n = lane + 32 * i, token = s.token0 + n;
				m.factors[s.factors() + n] = token < a.tokens ? a.scale[token] * a.gain : 0;
			}
			nc_arrive(m.q_full + 8 * slot);
		}
}

// Half is 64 of the tokens.
struct Half {
	int sum[32];
	float y[32];
};

// begin makes the sums such that a product added to them is a float.
NC_DEVICE void begin(Half &h, const int32_t *starts, int t)
{
	for (int n = 0; n < 8; n++) {
		const uint64_t two = *(const uint64_t *)(starts + 8 * n + 2 * t);
		int *s = h.sum + 4 * n;
		s[0] = s[2] = (int)(uint32_t)two, s[1] = s[3] = (int)(uint32_t)(two >> 32);
	}
}

// multiply begins the products with `steps` times 32 columns.
template <int Steps> NC_DEVICE void multiply(Half &h, const uint32_t *weights, uint64_t q)
{
	for (int i = 0; i < 32; i++)
		nc_pin(h.sum[i]);
	nc_wgmma_begin();
	for (int i = 0; i < Steps; i++)
		nc_wgmma(h.sum, weights + 4 * i, q + 2 * i);
	nc_wgmma_commit();
}

// add adds the sums of a group to the results.
NC_DEVICE void add(Half &h, float even, float odd)
{
	for (int i = 0; i < 32; i++) {
		const float x = __uint_as_float((uint32_t)h.sum[i]) - __uint_as_float(Begin);
		h.y[i] = fmaf(x, i % 4 < 2 ? even : odd, h.y[i]);
	}
}

// arrived keeps reads of the sums behind the wait for them.
NC_DEVICE void arrived(Half &h)
{
	for (int i = 0; i < 32; i++)
		nc_pin(h.sum[i]);
}

// Consumer is a thread of the four warps of 64 rows. Row g of a fragment is row 2g of the
// warp's 16, row g+8 row 2g+1, so that a thread's words of a tile lie side by side. The
// stages' parts of 32·Steps columns, which are one group or, if Long, within one, are called
// pieces of work here.
template <int Steps, bool Long> struct Consumer {
	enum { Parts = Stage / 32 / Steps };
	const HopperArgs &a;
	const Memory &m;
	Walk s;
	int warp, g, t; // warp of the eight
	Half low, high;
	float even, odd; // scales of the rows
	uint32_t q_slot, w_slot;

	// open waits for a stage.
	NC_METHOD void open(int k)
	{
		w_slot = s.w % WSlots, q_slot = s.q_slot(k);
		wait(m, m.w_full + 8 * w_slot, s.w / WSlots & 1);
		wait(m, m.q_full + 8 * q_slot, s.q_parity());
		s.w++, s.q++;
	}

	// unpack makes the left factor of a part.
	NC_METHOD void unpack(uint32_t *f, int part)
	{
		const char *at = m.weights + w_slot * WBytes + warp * 256 + 8 * g;
		const int shift = 2 * t;
		for (int i = 0; i < 2 * Steps; i++) {
			const int tile = 2 * Steps * part + i;
			const uint64_t two = *(const uint64_t *)(at + tile / 4 * FourBytes + tile % 4 * 64);
			f[2 * i] = (uint32_t)two >> shift & 0x03030303u;
			f[2 * i + 1] = (uint32_t)(two >> 32) >> shift & 0x03030303u;
		}
		for (int i = 0; i < 4 * Steps; i++)
			nc_pin(f[i]);
	}

	NC_METHOD void load_scales(uint32_t slot, int part)
	{
		// A box has two groups where a stage may: see feed_weights.
		const int groups = Parts == 2 && a.groups > 1 ? 2 : 1;
		const uint32_t both = ((const uint32_t *)(m.weights + slot * WBytes + 2 * FourBytes +
		                                          (warp * groups + part % groups) * ScaleBytes))[g];
		even = nc_half((uint16_t)both), odd = nc_half((uint16_t)(both >> 16));
	}

	NC_METHOD const int32_t *starts(uint32_t slot, int part) const
	{
		return m.starts + slot * (SumBytes / 4) + (Parts == 2 ? part : 0) * Tokens;
	}

	NC_METHOD uint64_t factor(uint32_t slot, int part, int half) const
	{
		return nc_descriptor(
			nc_address(m.q + slot * QBytes + half * (QBytes / 2) + part * Steps * 32));
	}

	// close gives a stage back.
	NC_METHOD void close(uint32_t q, uint32_t w, int lane)
	{
		__syncwarp();
		if (lane == 0) {
			nc_arrive(m.w_empty + 8 * w);
			if (s.leaves)
				nc_arrive(m.q_empty + 8 * q);
		}
	}

	// ends says whether a group ends with stage k.
	NC_METHOD bool ends(int k) const { return !Long || (k + 1) * Stage % a.group == 0; }

	// launch begins the products of a half with a part in the slot, at the beginning of a group
	// from its start.
	NC_METHOD void launch_at(Half &h, int half, uint32_t slot, const uint32_t *f, int part,
	                         bool start)
	{
		if (start)
			begin(h, starts(slot, part) + half * (Tokens / 2), t);
		multiply<Steps>(h, f, factor(slot, part, half));
	}
	NC_METHOD void launch(Half &h, int half, const uint32_t *f, int part, bool start)
	{
		launch_at(h, half, q_slot, f, part, start);
	}

	// take waits for a half's products, but not for the group after them if one is left, and
	// adds them if their group ends.
	template <int Left> NC_METHOD void take(Half &h, bool end)
	{
		nc_wgmma_await<Left>();
		arrived(h);
		if (end)
			add(h, even, odd);
	}

	// store writes the results of a half: those of a piece that is whole without looking further.
	NC_METHOD void store(Half &h, int half)
	{
		const int row = s.row0 + warp * 16 + 2 * g, first = half * (Tokens / 2) + 2 * t;
		const float *factors = m.factors + s.factors() + first;
		float *to = a.dst + (int64_t)(s.token0 + first) * a.ldd + row;
		const bool whole = a.pairs && s.row0 + Rows <= a.rows && s.token0 + Tokens <= a.tokens;
		if (whole) {
			for (int n = 0; n < 8; n++, to += 8 * (int64_t)a.ldd) {
				const uint64_t two = *(const uint64_t *)(factors + 8 * n);
				const float f0 = __uint_as_float((uint32_t)two),
							f1 = __uint_as_float((uint32_t)(two >> 32));
				nc_store2(to, f0 * h.y[4 * n], f0 * h.y[4 * n + 2]);
				nc_store2(to + a.ldd, f1 * h.y[4 * n + 1], f1 * h.y[4 * n + 3]);
			}
			return;
		}
		for (int n = 0; n < 8; n++, to += 8 * (int64_t)a.ldd) {
			const float f0 = factors[8 * n], f1 = factors[8 * n + 1];
			tail(to, f0 * h.y[4 * n], f0 * h.y[4 * n + 2], row, s.token0 + first + 8 * n);
			tail(to + a.ldd, f1 * h.y[4 * n + 1], f1 * h.y[4 * n + 3], row,
			     s.token0 + first + 8 * n + 1);
		}
	}

	// tail writes two rows of a token, if there are so many.
	NC_METHOD void tail(float *to, float even, float odd, int row, int token)
	{
		if (token < a.tokens && row < a.rows)
			to[0] = even;
		if (token < a.tokens && row + 1 < a.rows)
			to[1] = odd;
	}

	// run is the thread. Two parts are a round, at whose end no product runs: the compiler sees
	// which registers the products hold, or it would wait for each of them; and it wants the
	// first half's done before the second's begin. Products with a part read one set of unpacked
	// weights while the other is written.
	NC_METHOD void run(int lane)
	{
		uint32_t f0[4 * Steps], f1[4 * Steps];
		for (bool more = s.next(true); more; more = s.next(false)) {
			const int parts = Parts == 1 ? s.stages : (a.col_tiles + 3) / 4;
			for (int i = 0; i < 32; i++)
				low.y[i] = high.y[i] = 0;
			open(0);
			unpack(f0, 0);
			bool start = true;
			int p = 0;
			for (; p + 1 < parts; p += 2) {
				const uint32_t q = q_slot, w = w_slot;
				launch(low, 0, f0, 0, start);
				load_scales(w, 0);
				if (Parts == 1)
					open(p + 1);
				unpack(f1, 1 % Parts);
				nc_wgmma_await<0>();
				arrived(low);
				launch_at(high, 1, q, f0, 0, start);
				start = ends(p);
				if (start)
					add(low, even, odd);
				launch(low, 0, f1, 1 % Parts, start);
				take<1>(high, start);
				if (Parts == 1)
					close(q, w, lane);
				launch(high, 1, f1, 1 % Parts, start);
				const uint32_t q1 = q_slot, w1 = w_slot;
				load_scales(w1, 1 % Parts);
				if (p + 2 < parts)
					open((p + 2) / Parts);
				unpack(f0, 0); // at the end of the row of something, which is not used
				start = p + 2 >= parts || ends(p + 1);
				take<1>(low, start);
				take<0>(high, start);
				close(q1, w1, lane);
			}
			if (p < parts) {
				launch(low, 0, f0, 0, start);
				launch(high, 1, f0, 0, start);
				load_scales(w_slot, 0);
				take<1>(low, true);
				take<0>(high, true);
				close(q_slot, w_slot, lane);
			}
			store(low, 0);
			store(high, 1);
		}
	}
};

template <int Steps, bool Long> NC_DEVICE void product(const HopperArgs &a)
{
	NC_DYNAMIC(char, raw);
	NC_SHARED uint64_t barriers[2 * QSlots + 2 * WSlots];
	NC_SHARED int over;
	const int tid = (int)threadIdx.x, lane = tid % 32, warp = nc_shuffle(tid / 32, 0);
	const nc_place at = nc_place_of(raw), bars = nc_place_of(barriers);
	const uint32_t skip = (1024 - nc_address(at) % 1024) % 1024;
	Memory m;
	m.q = at + skip, m.w = m.q + QSlots * QBytes, m.sums = m.w + WSlots * WBytes;
	m.weights = raw + skip + QSlots * QBytes;
	m.starts = (int32_t *)(m.weights + WSlots * WBytes);
	m.factors = (float *)(m.starts + QSlots * (SumBytes / 4));
	m.q_full = bars, m.q_empty = bars + 8 * QSlots, m.w_full = bars + 16 * QSlots;
	m.w_empty = m.w_full + 8 * WSlots;
	m.failed = a.failed, m.over = &over;
	if (tid == 0) {
		over = 0;
		nc_prefetch(&a.map), nc_prefetch(&a.tiles), nc_prefetch(&a.scales);
		for (int i = 0; i < QSlots; i++) {
			nc_barrier(m.q_full + 8 * i, 33); // a warp's lanes, and the copy
			nc_barrier(m.q_empty + 8 * i, 8); // a lane of each warp
		}
		for (int i = 0; i < WSlots; i++) {
			nc_barrier(m.w_full + 8 * i, 1);
			nc_barrier(m.w_empty + 8 * i, 8);
		}
		nc_barriers();
	}
	__syncthreads();
	if (warp >= 8) {
		nc_registers_down<40>();
		if (warp == 8 && lane == 0)
			feed_weights(a, m);
		else if (warp == 9)
			feed_sums(a, m, lane);
		else if (warp == 10 && lane == 0)
			feed_tokens(a, m);
	} else {
		nc_registers_up<232>();
		Consumer<Steps, Long> c = {a, m, walk(a), warp, lane / 4, lane % 4, {}, {}, 0, 0, 0, 0};
		c.run(lane);
	}
}

// Groups of 128 columns.
NC_GRID_KERNEL(ternary_wgmma, HopperArgs, Threads) { product<4, false>(a); }

// Groups of 64.
NC_GRID_KERNEL(ternary_wgmma_64, HopperArgs, Threads) { product<2, false>(a); }

// Groups that are multiples of 128, or the row.
NC_GRID_KERNEL(ternary_wgmma_long, HopperArgs, Threads) { product<4, true>(a); }

#endif
