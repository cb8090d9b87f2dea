"""Single operations of the generator, from the definitions in the Go packages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from series import draw


# Cross-entropy: kernels.Loss.
def row_objective(z, target, cap=0.0, zloss=0.0, entropy=0.0, smoothing=0.0):
    """The objective of one row and its parts: nll, lse, entropy."""
    y = cap * jnp.tanh(z / cap) if cap else z
    lse = jax.scipy.special.logsumexp(y)
    p = jnp.exp(y - lse)
    h = -jnp.sum(p * (y - lse))
    nll = lse - y[target]
    objective = (1 - smoothing) * nll + smoothing * (lse - jnp.mean(y)) + zloss * lse**2 - entropy * h
    return objective, (nll, lse, h)


LOSSES = {
    "plain": {},
    "cap": {"cap": 4.0},
    "z": {"zloss": 0.25},
    "smoothing": {"smoothing": 0.125},
    "entropy": {"entropy": 0.5},
    "all": {"cap": 2.0, "zloss": 0.125, "entropy": 0.25, "smoothing": 0.0625},
}


def cross_entropy(out):
    for name, options in LOSSES.items():
        prefix = f"cross_entropy_{name}"
        z = draw(f"{prefix}/z", (77,), scale=8)
        grad, parts = jax.grad(lambda z, options=options: row_objective(z, 5, **options), has_aux=True)(z)
        out[f"{prefix}/dz"] = grad
        out[f"{prefix}/parts"] = jnp.stack(parts)


# Attention: documents of given lengths, positions from 0 in each.
def rope(x, positions, theta):
    """Turns pairs (i, i+d/2) of x [n, heads, d] by p·theta^(-2i/d)."""
    d = x.shape[-1]
    angle = positions[:, None] * theta ** (-2 * np.arange(d // 2) / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def attention(q, k, v, document, positions):
    """Causal attention within documents; q [n, heads, d], k and v [n, kv heads, d]."""
    heads, d = q.shape[1:]
    share = heads // k.shape[1]
    k, v = (jnp.repeat(x, share, axis=1) for x in (k, v))
    scores = jnp.einsum("ihd,jhd->hij", q, k) / np.sqrt(d)
    see = (document[:, None] == document[None, :]) & (positions[:, None] >= positions[None, :])
    p = jax.nn.softmax(jnp.where(see, scores, -jnp.inf), axis=-1)
    return jnp.einsum("hij,jhd->ihd", p, v)


def grouped_attention(out, prefix, put, drawn, rms_norm, qk_norm=False):
    lengths, heads, kv, d = (9, 1, 13), 4, 2, 16
    document = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    n = len(positions)

    def run(q, k, v, qnorm=None, knorm=None):
        if qk_norm:
            q, k = rms_norm(q, qnorm), rms_norm(k, knorm)
        else:
            q, k = 4 * q, 4 * k
        return attention(rope(q, positions, 100.0), rope(k, positions, 100.0), v, document, positions)

    inputs = {"q": (n, heads, d), "k": (n, kv, d), "v": (n, kv, d)}
    if qk_norm:
        inputs |= {"qnorm": (d,), "knorm": (d,)}
    put(out, prefix, run, drawn(prefix, **inputs))


# Hyper-connections: core/mhc.
def birkhoff(logits, n):
    perms = np.array(list(itertools.permutations(range(n))))
    w = jax.nn.softmax(logits)
    return jnp.einsum("k,kij->ij", w, np.eye(n)[perms])


def divide(h, axis, above):
    sums = jnp.sum(h, axis=axis, keepdims=True)
    return jnp.where(sums > above, h / jnp.where(sums > above, sums, 1), h)


def sinkhorn(logits, n, iters):
    h = jax.nn.softmax(logits.reshape(n, n), axis=1)
    for _ in range(iters):
        h = divide(divide(h, 0, 0), 1, 0)
    h = divide(divide(h, 1, 1), 0, 1)
    rows, cols = (jnp.maximum(1 - jnp.sum(h, axis=axis), 0) for axis in (1, 0))
    total = jnp.sum(rows)
    some = total > 1e-14  # below, it is the rounding of float64
    return h + jnp.where(some, jnp.outer(rows, cols) / jnp.where(some, total, 1), 0)


def mixing(c, p, x):
    """h_pre, h_post and H_res of a token with streams x [n, dim]."""
    n = c["Streams"]
    logits = jnp.concatenate([p["pre"], p["post"], p["res"]])
    if c["Dynamic"]:
        flat = x.reshape(-1)
        norm = flat / jnp.sqrt(jnp.mean(flat * flat) + 1e-6)
        gate = jnp.concatenate([jnp.repeat(p["gate"][:2], n), jnp.repeat(p["gate"][2:], len(logits) - 2 * n)])
        logits = logits + gate * (p["proj"] @ norm)
    pre, post, res = logits[:n], logits[n : 2 * n], logits[2 * n :]
    h = birkhoff(res, n) if c["Kind"] == 0 else sinkhorn(res, n, c["SinkhornIters"])
    return jax.nn.sigmoid(pre), 2 * jax.nn.sigmoid(post), h


def site_shapes(c):
    n = c["Streams"]
    res = n * n if c["Kind"] else {2: 2, 4: 24}[n]
    shapes = {"pre": (n,), "post": (n,), "res": (res,)}
    if c["Dynamic"]:
        shapes |= {"gate": (3,), "proj": (2 * n + res, n * c["Dim"])}
    return shapes


def sites():
    all_sites = {}
    for n, kind, iters, dynamic in itertools.product((2, 4), (0, 1), (2, 20), (False, True)):
        if kind == 0 and iters == 2:
            continue
        name = f"mhc_{n}_{('bvn', f'sinkhorn{iters}')[kind]}_{('static', 'dynamic')[dynamic]}"
        all_sites[name] = {"Streams": n, "Dim": 6, "Kind": kind, "Dynamic": dynamic, "SinkhornIters": iters}
    return all_sites


def mhc_site(out, name, c):
    """Gradients of Σ dout·X' + Σ du·u over three tokens by X, y and every parameter."""
    n, dim, tokens = c["Streams"], c["Dim"], 3
    p = {k: draw(f"{name}/{k}", shape, scale=2) for k, shape in site_shapes(c).items()}
    x, y = draw(f"{name}/x", (tokens, n, dim)), draw(f"{name}/y", (tokens, dim))
    dout, du = draw(f"{name}/dout", (tokens, n, dim)), draw(f"{name}/du", (tokens, dim))

    def run(p, x, y):
        new, read = [], []
        for t in range(tokens):
            pre, post, h = mixing(c, p, x[t])
            read.append(pre @ x[t])
            new.append(h @ x[t] + jnp.outer(post, y[t]))
        return jnp.stack(new), jnp.stack(read)

    def objective(p, x, y):
        new, read = run(p, x, y)
        return jnp.sum(new * dout) + jnp.sum(read * du)

    out[f"{name}/out"], out[f"{name}/u"] = run(p, x, y)
    dp, out[f"{name}/dx"], out[f"{name}/dy"] = jax.grad(objective, argnums=(0, 1, 2))(p, x, y)
    for k, g in dp.items():
        out[f"{name}/d{k}"] = g


# Ternary weights and int8 activations: core/ternary, straight through.
def round_even(x):
    """Rounds halves to even, and refuses near-halves, which float32 might round otherwise."""
    distance = np.abs(np.abs(x - np.floor(x)) - 0.5)
    assert ((distance == 0) | (distance > 1e-5)).all()
    return np.round(x)


def bit_linear(out):
    rows, cols, group, tokens = 20, 96, 32, 5
    w = draw("bitlinear/w", (rows, cols), scale=0.5)
    x = draw("bitlinear/x", (tokens, cols)) * np.array([0.25, 1, 2, 4, 0.5])[:, None]
    parts = w.reshape(rows, -1, group)
    # Values of few bits: the mean is exact, so that float32 and float64 round alike.
    s = np.abs(parts).mean(-1, keepdims=True).astype(np.float16).astype(np.float64)
    used = (np.clip(round_even(parts / s), -1, 1) * s).reshape(rows, cols)
    a = np.abs(x).max(-1, keepdims=True) / 127
    seen = round_even(x / a) * a
    dout = draw("bitlinear/dout", (tokens, rows))

    def run(x, w):
        # The quantisers add constants: their gradient is the identity.
        return (x + (seen - jax.lax.stop_gradient(x))) @ (w + (used - jax.lax.stop_gradient(w))).T

    out["bitlinear/out"] = run(x, w)
    out["bitlinear/dx"], out["bitlinear/dw"] = jax.grad(lambda x, w: jnp.sum(run(x, w) * dout), argnums=(0, 1))(x, w)
