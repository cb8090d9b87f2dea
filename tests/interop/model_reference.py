"""Write random models of foreign architectures and their logits, by definition.

    model_reference.py OUT_DIR ARCH WEIGHT_TYPE SEED [option ...]

writes OUT_DIR/model.gguf with the Python package gguf, and to OUT_DIR/logits.f32
the logits, [len(ids), vocab], of the token ids in OUT_DIR/ids.i32. The network
is written down here from the published definitions, in float64 but for what is
quantised: activations in front of ternary matrices (int8, one scale per token:
max|x|/127), and keys and values (float16). Nothing is shared with the engine.

Architectures: llama (SwiGLU, rotary pairs (2i, 2i+1)); bitnet (SwiGLU, pairs
(i, i+d/2), norms before the output and down projections); bitnet-b1.58 and
bitnet-25 (the same with gated squared ReLU).

Options: tied, rope_freqs, linear_rope, scales (bitnet: weights -1, 0, 1 and one
factor per matrix), relu2 (bitnet).
"""

import sys
from pathlib import Path

import gguf
import numpy as np

DIM, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, TOKENS = 256, 2, 4, 2, 64, 512, 96, 24
EPS, THETA = 1e-5, 10000.0
Type = gguf.GGMLQuantizationType


class Matrix:
    """A projection as it is stored, and as it computes."""

    def __init__(self, rng, rows, cols, qtype, ternary_by_definition, scaled):
        w = (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)
        self.scale = None
        if scaled:  # trits and a factor
            mean = np.abs(w).mean()
            self.scale = np.float32(mean)
            w = np.clip(np.round(w / mean), -1, 1).astype(np.float32)
        elif qtype in (Type.TQ1_0, Type.TQ2_0):  # a scale per 256 inputs
            groups = w.reshape(rows, cols // 256, 256)
            s = np.abs(groups).mean(axis=2, keepdims=True).astype(np.float16).astype(np.float32)
            w = (s * np.clip(np.round(groups / s), -1, 1)).reshape(rows, cols).astype(np.float32)
        self.data = gguf.quants.quantize(w, qtype)
        self.qtype = qtype
        value = gguf.quants.dequantize(self.data, qtype).astype(np.float64)
        if qtype == Type.Q4_0:  # the engine computes with halves
            value = half(value)
        self.int8 = ternary_by_definition or qtype in (Type.TQ1_0, Type.TQ2_0)
        if scaled:
            value *= np.float64(self.scale)
        elif ternary_by_definition and qtype not in (Type.TQ1_0, Type.TQ2_0):
            mean = max(np.abs(value).mean(), 1e-5)
            value = mean * np.clip(np.round(value / mean), -1, 1)
        self.value = value

    def __call__(self, x):
        if self.int8:
            x32 = x.astype(np.float32)
            a = np.abs(x32).max(axis=-1, keepdims=True) / np.float32(127)
            x = np.round(x32 / a).astype(np.float64) * a.astype(np.float64)
        return x @ self.value.T


def rms_norm(x, w):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * w


def rotate(x, angles, interleaved):
    """x is [tokens, heads, HEAD_DIM], angles [tokens, HEAD_DIM/2]."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    out = np.empty_like(x)
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        out[..., 0::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
    else:
        a, b = x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :]
        out[..., : HEAD_DIM // 2], out[..., HEAD_DIM // 2 :] = a * cos - b * sin, a * sin + b * cos
    return out


def half(x):
    return x.astype(np.float16).astype(np.float64)


def attention(q, k, v):
    """Causal, each key/value head for HEADS/KV_HEADS query heads; k and v are halves."""
    k, v = (np.repeat(half(t), HEADS // KV_HEADS, axis=1) for t in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(HEAD_DIM)
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", p / p.sum(axis=-1, keepdims=True), v)


def main():
    out, arch, type_name, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    options = set(sys.argv[5:])
    bitnet = arch != "llama"
    relu2 = arch in ("bitnet-b1.58", "bitnet-25") or "relu2" in options
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(out / "model.gguf"), arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    if arch == "bitnet" and relu2:
        writer.add_string("bitnet.hidden_activation", "relu2")

    def vector(name, n):
        w = (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)
        writer.add_tensor(name, w)
        return w.astype(np.float64)

    def matrix(name, rows, cols):
        m = Matrix(rng, rows, cols, Type[type_name], bitnet, "scales" in options)
        writer.add_tensor(f"{name}.weight", m.data, raw_dtype=m.qtype)
        if m.scale is not None:
            writer.add_tensor(f"{name}.scale", np.array([m.scale], np.float32))
        return m

    def table(name):
        dense = Type.F16 if type_name in ("TQ1_0", "TQ2_0") or bitnet else Type[type_name]
        w = gguf.quants.quantize((rng.standard_normal((VOCAB, DIM)) * 0.06).astype(np.float32), dense)
        writer.add_tensor(name, w, raw_dtype=dense)
        value = gguf.quants.dequantize(w, dense).astype(np.float64)
        return half(value) if dense == Type.Q4_0 else value

    embedding = table("token_embd.weight")
    frequencies = THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    if "rope_freqs" in options:
        factors = np.linspace(1, 8, HEAD_DIM // 2).astype(np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
        frequencies = frequencies / factors
    if "linear_rope" in options:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)
        frequencies = frequencies / 4
    angles = np.arange(TOKENS)[:, None] * frequencies

    ids = rng.integers(0, VOCAB, TOKENS)
    x = embedding[ids]
    for i in range(LAYERS):
        p = f"blk.{i}."
        h = rms_norm(x, vector(p + "attn_norm.weight", DIM))
        q = matrix(p + "attn_q", HEADS * HEAD_DIM, DIM)(h).reshape(TOKENS, HEADS, HEAD_DIM)
        k = matrix(p + "attn_k", KV_HEADS * HEAD_DIM, DIM)(h).reshape(TOKENS, KV_HEADS, HEAD_DIM)
        v = matrix(p + "attn_v", KV_HEADS * HEAD_DIM, DIM)(h).reshape(TOKENS, KV_HEADS, HEAD_DIM)
        a = attention(rotate(q, angles, not bitnet), rotate(k, angles, not bitnet), v).reshape(TOKENS, -1)
        if bitnet:
            a = rms_norm(a, vector(p + "attn_sub_norm.weight", HEADS * HEAD_DIM))
        x = x + matrix(p + "attn_output", DIM, HEADS * HEAD_DIM)(a)
        h = rms_norm(x, vector(p + "ffn_norm.weight", DIM))
        gate, up = matrix(p + "ffn_gate", FFN, DIM)(h), matrix(p + "ffn_up", FFN, DIM)(h)
        h = (np.maximum(gate, 0) ** 2 if relu2 else gate / (1 + np.exp(-gate))) * up
        if bitnet:
            h = rms_norm(h, vector(p + "ffn_sub_norm.weight", FFN))
        x = x + matrix(p + "ffn_down", DIM, FFN)(h)
    x = rms_norm(x, vector("output_norm.weight", DIM))
    head = embedding if bitnet or "tied" in options else table("output.weight")
    (x @ head.T).astype("<f4").tofile(out / "logits.f32")
    ids.astype("<i4").tofile(out / "ids.i32")

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
