"""Whole networks of the generator: the forward of core/model with float projections."""

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


def norm(c, x, weight):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + c["NormEps"]) * weight


def around(c, w, prefix, streams, layer):
    """One hyper-connection around a layer function, for all tokens [n, streams, dim]."""
    if c["Streams"] == 1:
        return streams + layer(streams[:, 0])[:, None]
    site = site_config(c)
    p = {name: w[f"{prefix}.{name}"] for name in site_shapes(site)}
    mixed = [mixing(site, p, x) for x in streams]
    y = layer(jnp.stack([pre @ x for (pre, _, _), x in zip(mixed, streams, strict=True)]))
    new = [h @ x + jnp.outer(post, v) for (_, post, h), x, v in zip(mixed, streams, y, strict=True)]
    return jnp.stack(new)


def logits(w, c, b):
    n = len(b["tokens"])
    embedding = w["token_embd.weight"][b["tokens"]]
    streams = jnp.repeat(embedding[:, None], c["Streams"], axis=1)
    for i in range(c["Layers"]):

        def get(name, i=i):
            return w[f"blk.{i}.{name}.weight"]

        def attend(u, get=get):
            x = norm(c, u, get("attn_norm"))
            q = (x @ get("attn_q").T).reshape(n, c["Heads"], -1)
            k = (x @ get("attn_k").T).reshape(n, c["KVHeads"], -1)
            v = (x @ get("attn_v").T).reshape(n, c["KVHeads"], -1)
            if c["QKNorm"]:
                q, k = norm(c, q, get("attn_q_norm")), norm(c, k, get("attn_k_norm"))
            q, k = (rope(z, b["positions"], c["RopeTheta"]) for z in (q, k))
            out = attention(q, k, v, b["document"], b["positions"]).reshape(n, -1)
            if c["SubNorm"]:
                out = norm(c, out, get("attn_sub_norm"))
            return out @ get("attn_output").T

        def feed(u, get=get):
            x = norm(c, u, get("ffn_norm"))
            up = x @ get("ffn_up").T
            if c["FFNKind"] == "relu2":
                inner = jnp.maximum(up, 0) ** 2
            elif c["FFNKind"] == "relu2_glu":
                inner = jnp.maximum(x @ get("ffn_gate").T, 0) ** 2 * up
            else:
                gate = x @ get("ffn_gate").T
                inner = gate / (1 + jnp.exp(-gate)) * up
            if c["SubNorm"]:
                inner = norm(c, inner, get("ffn_sub_norm"))
            return inner @ get("ffn_down").T

        if c["ResidualScalars"]:
            scalars = w[f"blk.{i}.residual_scalars"]
            streams = scalars[0] * streams + scalars[1] * embedding[:, None]
        streams = around(c, w, f"blk.{i}.mhc_attn", streams, attend)
        streams = around(c, w, f"blk.{i}.mhc_ffn", streams, feed)
    head = w["token_embd.weight"] if c["TieEmbeddings"] else w["output.weight"]
    return norm(c, jnp.mean(streams, axis=1), w["output_norm.weight"]) @ head.T


def network_objective(w, c, b):
    """The sum over the targets of the objective, scaled, and the sums of its parts."""
    z = logits(w, c, b)
    objective, sums = 0.0, jnp.zeros(3)
    for i, target in enumerate(b["targets"]):
        if target >= 0:
            value, (nll, lse, entropy) = row_objective(z[i], target, cap=c["LogitSoftcap"], **LOSS)
            objective += value
            sums += jnp.stack([nll, lse**2, entropy])
    return SCALE * objective, {"sums": sums, "logits": z}
