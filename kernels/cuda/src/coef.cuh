// What the kernels of the residual streams share.
#pragma once
#include "math.cuh"

enum { MaxStreams = 4 };

// The mixing of a site, as mhc.Coef has it; its gradient is laid out alike.
struct Coef {
	float pre[MaxStreams], post[MaxStreams], res[MaxStreams][MaxStreams];
};

// Pack is W floats that one access moves: 16 bytes where W is 4.
template <int W> struct alignas(4 * W) Pack {
	float v[W];
};
