// The mixing of residual streams from its logits and the gradient of the logits from that
// of the mixing, one thread for one token: the operations of package core/mhc in their order.
#pragma once
#include "coef.cuh"

enum { MaxLogits = 2 * MaxStreams + 24 }; // also the floats between the logits of tokens

// Site is the parameters of one place where streams are mixed, and what is made of them.
struct Site {
	const float *pre, *post, *res, *gate,
		*proj; // [S], [S], [logits - 2·S]; dynamic: [3], [logits][S·dim]
	float *g_pre, *g_post, *g_res, *g_gate, *g_proj;
	Coef *coef; // of a static site
};

// What all sites of a network have in common.
struct Kind {
	int32_t streams, dim, logits, sinkhorn, iterations, reserved;
};

// ------------------------------------------------------------- from logits to mixing

// Permutation p of 4 in lexicographic order puts perm[p][i] at place i.
NC_DEVICE int permutation4(int p, int i)
{
	constexpr uint8_t perm[24][4] = {
		{0, 1, 2, 3}, {0, 1, 3, 2}, {0, 2, 1, 3}, {0, 2, 3, 1}, {0, 3, 1, 2}, {0, 3, 2, 1},
		{1, 0, 2, 3}, {1, 0, 3, 2}, {1, 2, 0, 3}, {1, 2, 3, 0}, {1, 3, 0, 2}, {1, 3, 2, 0},
		{2, 0, 1, 3}, {2, 0, 3, 1}, {2, 1, 0, 3}, {2, 1, 3, 0}, {2, 3, 0, 1}, {2, 3, 1, 0},
		{3, 0, 1, 2}, {3, 0, 2, 1}, {3, 1, 0, 2}, {3, 1, 2, 0}, {3, 2, 0, 1}, {3, 2, 1, 0}};
	return perm[p][i];
}

template <int S> struct Birkhoff {
	enum { count = S == 2 ? 2 : 24 };
};

template <int S> NC_DEVICE int permutation(int p, int i)
{
	return S == 2 ? p ^ i : permutation4(p, i);
}

template <int N> NC_DEVICE void softmax(float *x)
{
	float top = -INFINITY, s[16];
	for (int i = 0; i < 16; i++)
		s[i] = 0;
	for (int i = 0; i < N; i++)
		top = x[i] > top ? x[i] : top;
	for (int i = 0; i < N; i++) {
		x[i] = nc_exp(x[i] - top);
		s[i & 15] = s[i & 15] + x[i];
	}
	for (int h = 8; h > 0; h /= 2)
		for (int i = 0; i < h; i++)
			s[i] = s[i] + s[i + h];
	const float inverse = 1.0f / s[0];
	for (int i = 0; i < N; i++)
		x[i] = x[i] * inverse;
}

// Tape is where sinkhorn leaves the sums that it divided by, 0 where it did not: step k, line
// i at at[(k·S + i)·stride]. One with null keeps nothing.
struct Tape {
	float *at;
	int64_t stride;
};

// divide divides the rows, or columns, of h whose sum is more than above by it.
template <int S, bool Columns> NC_DEVICE void divide(float h[S][S], float above, Tape &tape)
{
	for (int line = 0; line < S; line++) {
		float sum = 0;
		for (int k = 0; k < S; k++)
			sum = sum + (Columns ? h[k][line] : h[line][k]);
		const bool over = sum > above;
		if (over) {
			for (int k = 0; k < S; k++) {
				float &v = Columns ? h[k][line] : h[line][k];
				v = v / sum;
			}
		}
		if (tape.at) {
			*tape.at = over ? sum : 0;
			tape.at += tape.stride;
		}
	}
}

// sinkhorn balances exp of the logits l, which become their softmax by rows, up to its last
// step, fill.
template <int S> NC_DEVICE void sinkhorn(float h[S][S], float *l, int iterations, Tape &tape)
{
	for (int i = 0; i < S; i++) {
		softmax<S>(l + S * i);
		for (int j = 0; j < S; j++)
			h[i][j] = l[S * i + j];
	}
	for (int k = 0; k < iterations; k++) {
		divide<S, true>(h, 0, tape);
		divide<S, false>(h, 0, tape);
	}
	divide<S, false>(h, 1, tape);
	divide<S, true>(h, 1, tape);
}

// deficits is what rows and columns of h lack to 1, and the sum of the rows'.
template <int S> NC_DEVICE float deficits(const float h[S][S], float rows[S], float columns[S])
{
	float total = 0;
	for (int i = 0; i < S; i++) {
		float r = 0, c = 0;
		for (int j = 0; j < S; j++) {
			r = r + h[i][j];
			c = c + h[j][i];
		}
		r = 1.0f - r, c = 1.0f - c;
		rows[i] = r < 0 ? 0 : r; // NaN stays
		columns[i] = c < 0 ? 0 : c;
		total = total + rows[i];
	}
	return total;
}

template <int S> NC_DEVICE void fill(float h[S][S])
{
	float rows[S], columns[S];
	const float total = deficits<S>(h, rows, columns);
	if (total == 0)
		return;
	for (int i = 0; i < S; i++)
		for (int j = 0; j < S; j++)
			h[i][j] = h[i][j] + rows[i] * columns[j] / total;
}

NC_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + nc_exp(-x)); }

// mixing maps the logits l, which it overwrites, to c.
template <int S> NC_DEVICE void mixing(Coef *c, float *l, bool by_sinkhorn, int iterations)
{
	float h[S][S], *res = l + 2 * S;
	if (by_sinkhorn) {
		Tape none = {nullptr, 0};
		sinkhorn<S>(h, res, iterations, none);
		fill<S>(h);
	} else {
		softmax<Birkhoff<S>::count>(res);
		for (int i = 0; i < S; i++)
			for (int j = 0; j < S; j++)
				h[i][j] = 0;
		for (int p = 0; p < Birkhoff<S>::count; p++)
			for (int i = 0; i < S; i++)
				h[i][permutation<S>(p, i)] = h[i][permutation<S>(p, i)] + res[p];
	}
	for (int i = 0; i < MaxStreams; i++) {
		c->pre[i] = i < S ? sigmoid(l[i]) : 0;
		c->post[i] = i < S ? 2.0f * sigmoid(l[S + i]) : 0;
		for (int j = 0; j < MaxStreams; j++)
			c->res[i][j] = i < S && j < S ? h[i][j] : 0;
	}
}

// -------------------------------------------------------------------- backward

// softmax_back turns d, the gradient of w = softmax(l), into that of l.
template <int N> NC_DEVICE void softmax_back(double *d, const float *w)
{
	double mean = 0;
	for (int i = 0; i < N; i++)
		mean = mean + (double)w[i] * d[i];
	for (int i = 0; i < N; i++)
		d[i] = (double)w[i] * (d[i] - mean);
}

// divide_back is the backward of divide, h' = h/Σh: dh = (dh' - Σ dh'·h')/Σh. It takes the sums
// off the tape, and turns h, which is h', back into what it was.
template <int S, bool Columns> NC_DEVICE void divide_back(double g[S][S], float h[S][S], Tape &tape)
{
	tape.at -= S * tape.stride;
	for (int line = 0; line < S; line++) {
		const float sum = tape.at[line * tape.stride];
		if (sum == 0)
			continue;
		double mean = 0;
		for (int k = 0; k < S; k++)
			mean = mean +
			       (Columns ? g[k][line] * (double)h[k][line] : g[line][k] * (double)h[line][k]);
		for (int k = 0; k < S; k++) {
			double &d = Columns ? g[k][line] : g[line][k];
			float &v = Columns ? h[k][line] : h[line][k];
			d = (d - mean) / (double)sum;
			v = v * sum;
		}
	}
}

template <int S> NC_DEVICE void fill_back(double g[S][S], const float h[S][S])
{
	float rows[S], columns[S];
	const double total = (double)deficits<S>(h, rows, columns);
	if (total == 0)
		return;
	double dr[S], dc[S], mean = 0;
	for (int i = 0; i < S; i++)
		dr[i] = dc[i] = 0;
	for (int i = 0; i < S; i++) {
		for (int j = 0; j < S; j++) {
			dr[i] = dr[i] + g[i][j] * (double)columns[j] / total;
			dc[j] = dc[j] + g[i][j] * (double)rows[i] / total;
		}
		mean = mean + dr[i] * (double)rows[i] / total;
	}
	for (int i = 0; i < S; i++)
		for (int j = 0; j < S; j++) {
			if (rows[i] > 0)
				g[i][j] = g[i][j] - (dr[i] - mean);
			if (columns[j] > 0)
				g[i][j] = g[i][j] - dc[j];
		}
}

// logits_back writes the gradient of the logits l, which it overwrites, to dl, from that of
// pre, post and res: pre[0 .. S), then post, and res in rows, 4 apart as in a Coef.
template <int S>
NC_DEVICE void logits_back(double *dl, const double *pre, const double *post, const double *res,
                           float *l, bool by_sinkhorn, int iterations, Tape tape)
{
	for (int i = 0; i < S; i++) {
		const double p = (double)sigmoid(l[i]), q = (double)sigmoid(l[S + i]);
		dl[i] = pre[i] * p * (1 - p);
		dl[S + i] = post[i] * 2 * q * (1 - q);
	}
	double *d = dl + 2 * S;
	float *w = l + 2 * S;
	if (!by_sinkhorn) {
		softmax<Birkhoff<S>::count>(w);
		for (int p = 0; p < Birkhoff<S>::count; p++) {
			d[p] = 0;
			for (int i = 0; i < S; i++)
				d[p] = d[p] + res[MaxStreams * i + permutation<S>(p, i)];
		}
		softmax_back<Birkhoff<S>::count>(d, w);
		return;
	}
	double g[S][S];
	float h[S][S];
	for (int i = 0; i < S; i++)
		for (int j = 0; j < S; j++)
			g[i][j] = res[MaxStreams * i + j];
	sinkhorn<S>(h, w, iterations, tape);
	fill_back<S>(g, h);
	divide_back<S, true>(g, h, tape);
	divide_back<S, false>(g, h, tape);
	for (int k = 0; k < iterations; k++) {
		divide_back<S, false>(g, h, tape);
		divide_back<S, true>(g, h, tape);
	}
	for (int i = 0; i < S; i++) {
		for (int j = 0; j < S; j++)
			d[S * i + j] = g[i][j];
		softmax_back<S>(d + S * i, w + S * i);
	}
}

// gate_of is the number of the gate of logit i.
NC_DEVICE int gate_of(int i, int streams) { return i / streams < 2 ? i / streams : 2; }

// gated is the logits b + gate·z of one token.
NC_DEVICE void gated(float *l, const float *z, const Site &site, const Kind &kind)
{
	const int n = kind.streams;
	for (int i = 0; i < kind.logits; i++) {
		const float b = i < n ? site.pre[i] : i < 2 * n ? site.post[i - n] : site.res[i - 2 * n];
		l[i] = b + site.gate[gate_of(i, n)] * z[i];
	}
}
