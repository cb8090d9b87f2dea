"""Writes a random llama as transformers and as llama.cpp store it, and its logits.

    pretrained_reference.py OUT_DIR TYPE SEED [option ...]

writes OUT_DIR/hf/ (config.json and safetensors), OUT_DIR/model.gguf, and to
OUT_DIR/logits.f32 the logits, [len(ids), vocab], of the token ids in OUT_DIR/ids.i32.
The network is LlamaForCausalLM by definition, in float64 but for keys and values,
which are float16. OUT_DIR/q.f32 is the query projection of layer 0 in float32.

TYPE is float32, float16 or bfloat16. Options: tied; sharded (three files and an
index); wide (heads wider than the model); plain (no grouped queries, no head_dim key).
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

LAYERS, FFN, VOCAB, TOKENS = 2, 192, 80, 20
EPS, THETA = 1e-5, 50000.0
FORMATS = {
    "float32": gguf.GGMLQuantizationType.F32,
    "float16": gguf.GGMLQuantizationType.F16,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
}


def save_bfloat16(bits, path):
    """NumPy has no bfloat16: write the 16-bit patterns under their true type."""
    save_file(bits, path, metadata={"format": "pt"})
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].replace(b'"U16"', b'"BF16"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])


class Weights:
    """Random tensors, their stored forms, and their values."""

    def __init__(self, rng, kind):
        self.rng, self.kind, self.stored, self.value = rng, kind, {}, {}

    def add(self, name, *shape):
        w = self.rng.standard_normal(shape) / np.sqrt(shape[-1])
        if len(shape) == 1:
            w = 1 + 0.2 * self.rng.standard_normal(shape)
        w = w.astype(np.float32)
        if self.kind == "bfloat16":
            bits = w.view(np.uint32)
            bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            self.stored[name] = bits
            w = (bits.astype(np.uint32) << 16).view(np.float32)
        else:
            self.stored[name] = w.astype(self.kind)
            w = self.stored[name].astype(np.float32)
        self.value[name] = w
        return name


def interleave(w, heads):
    """Rows of rotary pairs (i, i + d/2) in the order of pairs (2i, 2i+1)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path, w, shape, tied):
    dim, heads, kv_heads, head_dim = shape
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(VOCAB)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for i in range(LAYERS):
        names.update({f"model.layers.{i}.{a}": f"blk.{i}.{b}" for a, b in parts.items()})
    for name, value in w.value.items():
        if name == "lm_head.weight" and tied:
            continue
        if "q_proj" in name:
            value = interleave(value, heads)
        elif "k_proj" in name:
            value = interleave(value, kv_heads)
        kind = FORMATS[w.kind] if value.ndim == 2 else FORMATS["float32"]
        writer.add_tensor(
            names[name.removesuffix(".weight")] + ".weight", gguf.quants.quantize(value, kind), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_hf(dir, w, shape, options):
    dim, heads, kv_heads, head_dim = shape
    dir.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": "tied" in options,
        "torch_dtype": w.kind,
    }
    if "plain" in options:
        del config["head_dim"], config["num_key_value_heads"], config["rope_theta"]
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": THETA}
    (dir / "config.json").write_text(json.dumps(config))
    save = save_bfloat16 if w.kind == "bfloat16" else save_file
    if "sharded" not in options:
        save(w.stored, dir / "model.safetensors")
        return
    index = {}
    for n in range(3):
        file = f"model-{n + 1:05}-of-00003.safetensors"
        part = {name: t for i, (name, t) in enumerate(w.stored.items()) if i % 3 == n}
        save(part, dir / file)
        index.update(dict.fromkeys(part, file))
    (dir / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))


def rms_norm(x, w):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * w


def half(x):
    return x.astype(np.float16).astype(np.float64)


def rotate(x):
    """rotate_half of transformers on [tokens, heads, head_dim]."""
    d = x.shape[-1]
    angles = np.arange(len(x))[:, None] * THETA ** (-np.arange(0, d, 2) / d)
    cos, sin = (np.concatenate([f(angles)] * 2, axis=-1)[:, None] for f in (np.cos, np.sin))
    return x * cos + np.concatenate([-x[..., d // 2 :], x[..., : d // 2]], axis=-1) * sin


def forward(w, ids, shape, tied):
    _, heads, kv_heads, head_dim = shape
    get = {name.removesuffix(".weight"): v.astype(np.float64) for name, v in w.value.items()}
    x = get["model.embed_tokens"][ids]
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        u = rms_norm(x, get[p + "input_layernorm"])
        q, k, v = (
            (u @ get[f"{p}self_attn.{name}_proj"].T).reshape(len(ids), n, head_dim)
            for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        k, v = (np.repeat(half(t), heads // kv_heads, axis=1) for t in (rotate(k), v))
        scores = np.einsum("qhd,khd->hqk", rotate(q), k) / np.sqrt(head_dim)
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        a = np.exp(scores - scores.max(axis=-1, keepdims=True))
        a /= a.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", a, v).reshape(len(ids), -1) @ get[p + "self_attn.o_proj"].T
        u = rms_norm(x, get[p + "post_attention_layernorm"])
        gate = u @ get[p + "mlp.gate_proj"].T
        x = x + (gate / (1 + np.exp(-gate)) * (u @ get[p + "mlp.up_proj"].T)) @ get[p + "mlp.down_proj"].T
    head = get["model.embed_tokens"] if tied else get["lm_head"]
    return rms_norm(x, get["model.norm"]) @ head.T


def main():
    out, kind, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    options = set(sys.argv[4:])
    dim, heads, kv_heads, head_dim = 128, 4, 2, 32
    if "wide" in options:
        head_dim = 64
    if "plain" in options:
        kv_heads = heads
    shape = dim, heads, kv_heads, head_dim
    rng = np.random.default_rng(seed)
    w = Weights(rng, kind)
    w.add("model.embed_tokens.weight", VOCAB, dim)
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        w.add(p + "input_layernorm.weight", dim)
        for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            w.add(f"{p}self_attn.{name}_proj.weight", n * head_dim, dim)
        w.add(p + "self_attn.o_proj.weight", dim, heads * head_dim)
        w.add(p + "post_attention_layernorm.weight", dim)
        for name, rows, cols in (("gate", FFN, dim), ("up", FFN, dim), ("down", dim, FFN)):
            w.add(f"{p}mlp.{name}_proj.weight", rows, cols)
    w.add("model.norm.weight", dim)
    if "tied" not in options:
        w.add("lm_head.weight", VOCAB, dim)
    ids = rng.integers(0, VOCAB, TOKENS)
    write_hf(out / "hf", w, shape, options)
    write_gguf(out / "model.gguf", w, shape, "tied" in options)
    ids.astype(np.int32).tofile(out / "ids.i32")
    forward(w, ids, shape, "tied" in options).astype(np.float32).tofile(out / "logits.f32")
    w.value["model.layers.0.self_attn.q_proj.weight"].tofile(out / "q.f32")


if __name__ == "__main__":
    main()
