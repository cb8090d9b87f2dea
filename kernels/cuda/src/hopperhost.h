// hopper.cuh on a processor.
#pragma once

#include <map>
#include <vector>

#define NC_GRID_KERNEL(name, Args, threads) NC_KERNEL(name, Args)

namespace nc_host
{

// wrong ends the process: a signal on a fiber's stack would not do so.
static void wrong(const char *what)
{
	fprintf(stderr, "%s\n", what);
	_Exit(3);
}

// Barrier is the 8 bytes of one.
struct Barrier {
	uint16_t count, missing;
	int32_t phase : 1, bytes : 31; // bytes that were expected less those that came
};
static_assert(sizeof(Barrier) == 8, "a barrier has 8 bytes");

static Barrier *barrier(nc_place at)
{
	aligned(at, 8, "mbarrier");
	return (Barrier *)at;
}

static void turn(Barrier *b)
{
	if (b->missing == 0 && b->bytes == 0)
		b->missing = b->count, b->phase = ~b->phase;
}

// Bulk is a copy of the engine that was begun.
struct Bulk {
	nc_place dst;
	Barrier *barrier;
	std::vector<char> data; // as the engine would read it now; writing to src meanwhile is a fault
};
static std::vector<Bulk> bulks;

static void land(size_t i)
{
	Bulk b = bulks[i];
	bulks.erase(bulks.begin() + (long)i);
	memcpy(b.dst, b.data.data(), b.data.size());
	b.barrier->bytes -= (int)b.data.size();
	turn(b.barrier);
}

static void take_off(nc_place dst, std::vector<char> data, nc_place b)
{
	memset(dst, 0xA5, data.size());
	bulks.push_back({dst, barrier(b), std::move(data)});
}

// Map is what the emulated cuTensorMapEncodeTiled writes.
struct Map {
	const char *at;
	uint64_t columns, rows, stride;
	uint32_t width, height, swizzle, magic;
};

// Product is one that was begun; the place of a is read when it is carried out.
struct Product {
	int *d;
	const uint32_t *a;
	uint64_t b;
};
struct Products {
	std::vector<Product> list;
	std::vector<size_t> ends;               // of groups, in list
	std::map<int *, std::vector<int>> sums; // of results that are not there yet
	bool fenced;
};
static Products products[MaxThreads];

// column is 32 bytes along k of column n of the right factor b.
static void column(int8_t out[32], uint64_t b, unsigned n)
{
	const uint64_t base = (uint64_t)(uintptr_t)dynamic;
	const uint32_t start = (uint32_t)(b & 0x3fff) << 4, far = (uint32_t)(b >> 32 & 0x3fff) << 4;
	if (b >> 62 != 1 || (b >> 49 & 7) != 0)
		wrong("wgmma: a layout that is not that of nc_descriptor");
	for (unsigned k = 0; k < 32; k += 16) {
		uint64_t at = start + n / 8 * far + n % 8 * 128 + k;
		at ^= (at >> 7 & 7) << 4;
		const uint64_t offset = (at - base) & 0x3ffff;
		if (offset + 16 > dynamic_bytes || at % 16 != 0)
			wrong("wgmma: an address outside the block's dynamic shared memory");
		memcpy(out + k, dynamic + offset, 16);
	}
}

static void carry_out(size_t groups_left)
{
	Products &mine = products[flat()];
	struct Shared {
		const Product *first;
		size_t n;
	};
	const size_t done = mine.ends.size() > groups_left ? mine.ends.size() - groups_left : 0;
	const size_t n = done ? mine.ends[done - 1] : 0;
	const Shared *all = exchange(Shared{mine.list.data(), n});
	const unsigned g = lane() / 4, t = lane() % 4;
	for (size_t i = 0; i < n; i++) {
		std::vector<int> &sum = mine.sums[mine.list[i].d];
		for (unsigned column8 = 0; column8 < 8; column8++)
			for (unsigned j = 0; j < 2; j++) {
				int8_t b[32];
				column(b, mine.list[i].b, 8 * column8 + 2 * t + j);
				for (unsigned k = 0; k < 4; k++) {
					const Shared &other = all[4 * g + k];
					if (other.n != n || other.first[i].b != mine.list[i].b)
						wrong("wgmma: the threads of a warp do not do the same");
					const uint32_t *a = other.first[i].a;
					uint32_t low, high;
					memcpy(&low, b + 4 * k, 4), memcpy(&high, b + 16 + 4 * k, 4);
					int &upper = sum[4 * column8 + j], &lower = sum[4 * column8 + 2 + j];
					upper = nc_dot(a[2], high, nc_dot(a[0], low, upper));
					lower = nc_dot(a[3], high, nc_dot(a[1], low, lower));
				}
			}
	}
	sync(AtWarp); // all have read each other's factors
	mine.list.erase(mine.list.begin(), mine.list.begin() + (long)n);
	mine.ends.erase(mine.ends.begin(), mine.ends.begin() + (long)done);
	for (size_t &end : mine.ends)
		end -= n;
	for (auto s = mine.sums.begin(); s != mine.sums.end();) {
		bool waits = false;
		for (const Product &p : mine.list)
			waits |= p.d == s->first;
		if (waits) {
			++s;
			continue;
		}
		memcpy(s->first, s->second.data(), 32 * sizeof(int));
		s = mine.sums.erase(s);
	}
}

} // namespace nc_host

NC_DEVICE uint32_t nc_address(nc_place p) { return (uint32_t)((uintptr_t)p & 0x3ffff); }

NC_DEVICE void nc_barrier(nc_place b, int count)
{
	nc_host::Barrier *at = nc_host::barrier(b);
	at->count = at->missing = (uint16_t)count;
	at->phase = 0, at->bytes = 0;
}
// What another block has left is gone.
NC_DEVICE void nc_barriers()
{
	nc_host::bulks.clear();
	for (nc_host::Products &p : nc_host::products)
		p = {};
}
NC_DEVICE void nc_arrive(nc_place b)
{
	nc_host::Barrier *at = nc_host::barrier(b);
	if (at->missing == 0)
		nc_host::wrong("mbarrier: more threads arrive than it counts");
	at->missing--;
	nc_host::turn(at);
}
NC_DEVICE void nc_expect(nc_place b, int bytes)
{
	nc_host::barrier(b)->bytes += bytes;
	nc_arrive(b);
}
NC_DEVICE bool nc_passed(nc_place b, uint32_t parity)
{
	nc_host::Barrier *at = nc_host::barrier(b);
	while (!nc_host::bulks.empty() && nc_host::random(3) == 0)
		nc_host::land(nc_host::random((unsigned)nc_host::bulks.size()));
	if ((uint32_t)(at->phase & 1) != parity)
		return true;
	nc_host::yield();
	return (uint32_t)(at->phase & 1) != parity;
}
// A wait that has no end is found by the emulation.
NC_DEVICE int64_t nc_clock() { return 0; }
enum : int64_t { nc_patience = 1 };
NC_DEVICE void nc_trap() { nc_host::wrong("trap"); }

NC_DEVICE void nc_tensor(nc_place dst, const nc_map *map, int x, int y, nc_place b)
{
	nc_host::Map m;
	memcpy(&m, map, sizeof m);
	if (m.magic != 0x6d6170)
		nc_host::wrong("cp.async.bulk.tensor: not a map");
	nc_host::aligned(dst, m.swizzle ? 1024 : 128, "cp.async.bulk.tensor to");
	std::vector<char> data(m.width * m.height);
	for (uint32_t r = 0; r < m.height; r++)
		for (uint32_t c = 0; c < m.width; c++) {
			const uint64_t column = (uint64_t)(x + (int)c), row = (uint64_t)(y + (int)r);
			uint32_t at = r * m.width + c;
			at ^= m.swizzle ? (at >> 7 & 7) << 4 : 0;
			data[at] = column < m.columns && row < m.rows ? m.at[row * m.stride + column] : 0;
		}
	nc_host::take_off(dst, std::move(data), b);
}
NC_DEVICE void nc_prefetch(const nc_map *) {}

template <int N> NC_DEVICE void nc_registers_down() {}
template <int N> NC_DEVICE void nc_registers_up() {}

NC_DEVICE void nc_wgmma_begin() { nc_host::products[nc_host::flat()].fenced = true; }
NC_DEVICE void nc_wgmma_commit()
{
	nc_host::Products &mine = nc_host::products[nc_host::flat()];
	mine.ends.push_back(mine.list.size());
	mine.fenced = false;
}
template <int N> NC_DEVICE void nc_wgmma_await() { nc_host::carry_out(N); }
template <class T> NC_DEVICE void nc_pin(T &) {}

NC_DEVICE void nc_wgmma(int d[32], const uint32_t a[4], uint64_t b)
{
	nc_host::Products &mine = nc_host::products[nc_host::flat()];
	if (!mine.fenced)
		nc_host::wrong("wgmma: no fence after the last group");
	if (mine.sums.find(d) == mine.sums.end()) {
		mine.sums[d] = std::vector<int>(d, d + 32);
		memset(d, 0xA5, 32 * sizeof(int));
	}
	mine.list.push_back({d, a, b});
}
