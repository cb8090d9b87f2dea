// Sums in a fixed order: of partial gradients over blocks, and of tokens' gradients into the rows
// of the embedding.
#include "train.cuh"

enum { MaxJobs = 64 };

// PartialSum adds the columns of src to dst.
struct PartialSum {
	float *dst;       // [width]
	const float *src; // [rows][stride]
	int32_t rows, width, stride, reserved;
};

struct AddPartialsArgs {
	PartialSum jobs[MaxJobs];
};

// A block of 1024 threads for 32 columns of job blockIdx.y: each thread adds every 32nd row.
NC_BOUNDED(add_partials, AddPartialsArgs, 1024, 2)
{
	NC_SHARED double sums[32][33];
	const PartialSum &job = a.jobs[blockIdx.y];
	const int lane = (int)threadIdx.x % 32, line = (int)threadIdx.x / 32;
	const int column = (int)blockIdx.x * 32 + lane;
	if ((int)blockIdx.x * 32 >= job.width)
		return;
	double s = 0;
	if (column < job.width)
		NC_UNROLL_BY(8)
	for (int r = line; r < job.rows; r += 32)
		s = s + (double)job.src[(int64_t)r * job.stride + column];
	sums[line][lane] = s;
	__syncthreads();
	if (line != 0 || column >= job.width)
		return;
	s = job.dst[column];
	for (int i = 0; i < 32; i++)
		s = s + sums[i][lane];
	job.dst[column] = (float)s;
}

enum { Chunk = 32 }; // tokens that a block adds

struct EmbedBackArgs {
	float *g;              // [vocab][dim], added to
	const float *dx;       // [n][streams][dim]
	const float *dembed;   // [n][dim], or null
	const int32_t *ids;    // [n], ascending
	const int32_t *tokens; // [n]: where each has its gradient; ascending within an id
	float *partial;        // [chunks][2][dim]
	int32_t n, dim, streams, reserved;
};

// A block adds a chunk of the tokens in order of their ids. A run of one id that lies within the
// chunk goes to its row; what is in other chunks too goes to partial: [0] of a run that began in
// front of the chunk, [1] of one that begins in it and goes on behind it.
NC_BOUNDED(embed_back, EmbedBackArgs, 256, 4)
{
	const int first = (int)blockIdx.x * Chunk, last = first + Chunk < a.n ? first + Chunk : a.n;
	for (int at = 4 * (int)threadIdx.x; at < a.dim; at += 4 * (int)blockDim.x) {
		int id = a.ids[first];
		bool before = first > 0 && a.ids[first - 1] == id;
		float sum[4] = {0, 0, 0, 0};
		for (int place = first; place < last; place += 4) {
			float v[4][4];
	NC_UNROLL
			for (int j = 0; j < 4; j++) {
				NC_UNROLL
				for (int e = 0; e < 4; e++)
					v[j][e] = 0;
				if (place + j >= last)
					continue;
				const int64_t token = a.tokens[place + j];
				if (a.dembed)
					load4(v[j], a.dembed + token * a.dim + at);
				for (int s = 0; s < a.streams; s++) {
					float x[4];
					load4(x, a.dx + (token * a.streams + s) * a.dim + at);
					NC_UNROLL
					for (int e = 0; e < 4; e++)
						v[j][e] = v[j][e] + x[e];
				}
			}
			NC_UNROLL
			for (int j = 0; j < 4; j++) {
				if (place + j >= last)
					continue;
				const int next = a.ids[place + j];
				if (next != id) {
					float *dst = before ? a.partial + (int64_t)blockIdx.x * 2 * a.dim + at
					                    : a.g + (int64_t)id * a.dim + at;
					float old[4] = {0, 0, 0, 0};
					if (!before)
						load4(old, dst);
					NC_UNROLL
					for (int e = 0; e < 4; e++)
						old[e] = old[e] + sum[e], sum[e] = 0;
					store4(dst, old);
					id = next, before = false;
				}
				NC_UNROLL
				for (int e = 0; e < 4; e++)
					sum[e] = sum[e] + v[j][e];
			}
		}
		const bool after = last < a.n && a.ids[last] == id;
		float *dst = a.g + (int64_t)id * a.dim + at, old[4] = {0, 0, 0, 0};
		if (before || after)
			dst = a.partial + ((int64_t)blockIdx.x * 2 + !before) * a.dim + at;
		else
			load4(old, dst);
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			old[e] = old[e] + sum[e];
		store4(dst, old);
	}
}

// A block adds the parts of the run that begins in a chunk and goes on behind it, if there is one.
NC_BOUNDED(embed_join, EmbedBackArgs, 256, 4)
{
	NC_SHARED int more; // chunks behind this one that have a part
	const int chunk = (int)blockIdx.x, first = chunk * Chunk, last = first + Chunk;
	if (last >= a.n)
		return;
	const int id = a.ids[last];
	if (a.ids[last - 1] != id || (first > 0 && a.ids[first - 1] == id))
		return;
	for (int j = (int)threadIdx.x; last + j * Chunk < a.n && a.ids[last + j * Chunk] == id;
	     j += (int)blockDim.x) {
		const int end = last + (j + 1) * Chunk;
		if (end >= a.n || a.ids[end] != id)
			more = j + 1; // of one thread only
	}
	__syncthreads();
	for (int at = 4 * (int)threadIdx.x; at < a.dim; at += 4 * (int)blockDim.x) {
		float sum[4], *dst = a.g + (int64_t)id * a.dim + at;
		load4(sum, a.partial + ((int64_t)chunk * 2 + 1) * a.dim + at);
		NC_UNROLL_BY(4)
		for (int j = 1; j <= more; j++) {
			float v[4];
			load4(v, a.partial + (int64_t)(chunk + j) * 2 * a.dim + at);
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				sum[e] = sum[e] + v[e];
		}
		float old[4];
		load4(old, dst);
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			old[e] = old[e] + sum[e];
		store4(dst, old);
	}
}
