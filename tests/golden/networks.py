"""Whole networks of the generator: the forward of core/model."""

import jax
import jax.numpy as jnp
import numpy as np
from ops import attention, mixing, rope, row_objective, site_shapes
from series import draw, pick

PLAIN = {
    "Dim": 16, "Layers": 2, "Heads": 4, "KVHeads": 2, "HeadDim": 8, "FFN": 24, "FFNKind": "swiglu", "Vocab": 40,
    "Context": 64, "RopeTheta": 100.0, "NormEps": 1e-5, "TieEmbeddings": False, "Embedding": "f16", "Head": "f16",
    "Group": 0, "QKNorm": True, "SubNorm": True, "LogitSoftcap": 8.0, "ResidualScalars": True,
    "Streams": 1, "MHC": "bvn", "MHCDynamic": False, "SinkhornIters": 20,
}  # fmt: skip

# The names of the keys are those of config.Model.
NETWORKS = {
    "plain": PLAIN,
    "bvn2": PLAIN | {"Streams": 2, "FFNKind": "relu2"},
    "sinkhorn4": PLAIN
    | {
        "Streams": 4, "MHC": "sinkhorn", "MHCDynamic": True, "FFNKind": "relu2_glu", "TieEmbeddings": True,
        "KVHeads": 4, "QKNorm": False, "SubNorm": False, "LogitSoftcap": 0, "ResidualScalars": False,
    },
}  # fmt: skip

NETWORKS["ternary"] = NETWORKS["bvn2"] | {
    "Dim": 32, "FFN": 48, "Embedding": "q8_0", "Head": "q8_0", "LogitSoftcap": 15.0,
}  # fmt: skip

# The others have float projections, embedding and head.
TERNARY = {"ternary"}

# Every term of the loss counts; Scale is applied to the sum over the targets.
LOSS = {"zloss": 2**-6, "entropy": 2**-5, "smoothing": 2**-4}
SCALE = 2**-4


def site_config(c):
    return {
        "Streams": c["Streams"], "Dim": c["Dim"], "Kind": int(c["MHC"] == "sinkhorn"),
        "Dynamic": c["MHCDynamic"], "SinkhornIters": c["SinkhornIters"],
    }  # fmt: skip


def shapes(c):
    """Every tensor: its shape, and the scale and shift of its values."""
    dim, ffn = c["Dim"], c["FFN"]
    q, kv = c["Heads"] * c["HeadDim"], c["KVHeads"] * c["HeadDim"]
    all_shapes = {"token_embd.weight": ((c["Vocab"], dim), 1, 0)}
    for i in range(c["Layers"]):
        blk = f"blk.{i}."
        norms = {"attn_norm": dim, "ffn_norm": dim}
        mats = {"attn_q": (q, dim), "attn_k": (kv, dim), "attn_v": (kv, dim), "attn_output": (dim, q)}
        mats |= {"ffn_up": (ffn, dim), "ffn_down": (dim, ffn)}
        if c["FFNKind"] != "relu2":
            mats["ffn_gate"] = (ffn, dim)
        if c["QKNorm"]:
            norms |= {"attn_q_norm": c["HeadDim"], "attn_k_norm": c["HeadDim"]}
        if c["SubNorm"]:
            norms |= {"attn_sub_norm": q, "ffn_sub_norm": ffn}
        for name, n in norms.items():
            all_shapes[f"{blk}{name}.weight"] = ((n,), 0.5, 1)
        for name, shape in mats.items():
            all_shapes[f"{blk}{name}.weight"] = (shape, 0.5, 0)
        if c["ResidualScalars"]:
            all_shapes[f"{blk}residual_scalars"] = ((2,), 0.25, 0.5)
        if c["Streams"] > 1:
            for site in ("mhc_attn", "mhc_ffn"):
                for name, shape in site_shapes(site_config(c)).items():
                    all_shapes[f"{blk}{site}.{name}"] = (shape, 0.25 if name == "proj" else 1, 0)
    all_shapes["output_norm.weight"] = ((dim,), 0.5, 1)
    if not c["TieEmbeddings"]:
        all_shapes["output.weight"] = ((c["Vocab"], dim), 1, 0)
    return all_shapes


def weights(network, c):
    return {name: draw(f"{network}/{name}", s, scale, shift) for name, (s, scale, shift) in shapes(c).items()}


def batch(c):
    """Two rows of twelve tokens; the first holds two documents. -1 is no target."""
    rows, length = 2, 12
    tokens = pick("tokens", rows * length, c["Vocab"])
    targets = pick("targets", rows * length, c["Vocab"])
    targets[[4, 17]] = -1
    starts = np.array([0] * 5 + [5] * 7 + [0] * 12)
    column = np.tile(np.arange(length), rows)
    return {
        "tokens": tokens, "targets": targets, "positions": column - starts,
        "document": np.repeat(np.arange(rows), length) * length + starts,
    }  # fmt: skip


# Quantisers are straight through: their gradient is the identity.
def straight(x, quantised):
    return x + jax.lax.stop_gradient(quantised - x)


def half(x):
    """What a cache of keys or values in half precision gives back."""
    return straight(x, x.astype(jnp.float16).astype(jnp.float64))


def ternary(w):
    """Trits times one scale for each row."""
    s = jnp.mean(jnp.abs(w), -1, keepdims=True).astype(jnp.float16).astype(jnp.float64)
    return straight(w, jnp.clip(jnp.round(w / s), -1, 1) * s)


def int8(x):
    """Activations: int8 with one scale for each token."""
    a = jnp.max(jnp.abs(x), -1, keepdims=True) / 127
    return straight(x, jnp.round(x / a) * a)


def q8_0(w):
    """Blocks of 32 int8 with a half-precision scale, halves away from zero."""
    blocks = w.reshape(-1, 32)
    d = jnp.max(jnp.abs(blocks), -1, keepdims=True) / 127
    q = jnp.sign(blocks) * jnp.floor(jnp.abs(blocks) / d + 0.5)
    return straight(w, (q * d.astype(jnp.float16).astype(jnp.float64)).reshape(w.shape))


def norm(c, x, weight):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + c["NormEps"]) * weight


def around(c, w, prefix, streams, layer):
    """One hyper-connection around a layer function, for all tokens [n, streams, dim]."""
    if c["Streams"] == 1:
        return streams + layer(streams[:, 0])[:, None]
    site = site_config(c)
    p = {name: w[f"{prefix}.{name}"] for name in site_shapes(site)}
    pre, post, h = jax.vmap(lambda x: mixing(site, p, x))(streams)
    y = layer(jnp.einsum("ts,tsd->td", pre, streams))
    return jnp.einsum("tij,tjd->tid", h, streams) + post[:, :, None] * y[:, None]


def logits(w, c, b, quantised):
    n = len(b["tokens"])
    stored = q8_0 if quantised else lambda w: w
    embedding = stored(w["token_embd.weight"])[b["tokens"]]

    def project(x, w):
        return int8(x) @ ternary(w).T if quantised else x @ w.T

    streams = jnp.repeat(embedding[:, None], c["Streams"], axis=1)
    for i in range(c["Layers"]):

        def get(name, i=i):
            return w[f"blk.{i}.{name}.weight"]

        def attend(u, get=get):
            x = norm(c, u, get("attn_norm"))
            q = project(x, get("attn_q")).reshape(n, c["Heads"], -1)
            k = project(x, get("attn_k")).reshape(n, c["KVHeads"], -1)
            v = project(x, get("attn_v")).reshape(n, c["KVHeads"], -1)
            if c["QKNorm"]:
                q, k = norm(c, q, get("attn_q_norm")), norm(c, k, get("attn_k_norm"))
            q, k = (rope(z, b["positions"], c["RopeTheta"]) for z in (q, k))
            out = attention(q, half(k), half(v), b["document"], b["positions"]).reshape(n, -1)
            if c["SubNorm"]:
                out = norm(c, out, get("attn_sub_norm"))
            return project(out, get("attn_output"))

        def feed(u, get=get):
            x = norm(c, u, get("ffn_norm"))
            up = project(x, get("ffn_up"))
            if c["FFNKind"] == "relu2":
                inner = jnp.maximum(up, 0) ** 2
            elif c["FFNKind"] == "relu2_glu":
                inner = jnp.maximum(project(x, get("ffn_gate")), 0) ** 2 * up
            else:
                gate = project(x, get("ffn_gate"))
                inner = gate / (1 + jnp.exp(-gate)) * up
            if c["SubNorm"]:
                inner = norm(c, inner, get("ffn_sub_norm"))
            return project(inner, get("ffn_down"))

        if c["ResidualScalars"]:
            scalars = w[f"blk.{i}.residual_scalars"]
            streams = scalars[0] * streams + scalars[1] * embedding[:, None]
        streams = around(c, w, f"blk.{i}.mhc_attn", streams, attend)
        streams = around(c, w, f"blk.{i}.mhc_ffn", streams, feed)
    head = w["token_embd.weight"] if c["TieEmbeddings"] else w["output.weight"]
    last = norm(c, jnp.mean(streams, axis=1), w["output_norm.weight"])
    return int8(last) @ q8_0(head).T if quantised else last @ head.T


def network_objective(w, c, b, quantised):
    """The sum over the targets of the objective, scaled, and the sums of its parts."""
    z = logits(w, c, b, quantised)
    some = b["targets"] >= 0
    row = jax.vmap(lambda z, target: row_objective(z, target, cap=c["LogitSoftcap"], **LOSS))
    objective, (nll, lse, entropy) = row(z[some], b["targets"][some])
    return SCALE * jnp.sum(objective), {"sums": jnp.stack([jnp.sum(nll), jnp.sum(lse**2), jnp.sum(entropy)])}
