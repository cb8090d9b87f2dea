"""Writes foreign-v2.gguf, foreign-v3.gguf and quants.gguf with the Python package gguf.

quants.gguf holds values, what the package quantises them to, and what it
dequantises that to again.

Run in this directory: python make_golden.py (pip install gguf numpy).
"""

import struct
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

w = GGUFWriter("foreign-v3.gguf", "llama")
w.add_block_count(1)
w.add_float32("llama.rope.freq_base", 10000.0)
w.add_token_list(["<s>", "</s>", "▁Hello", "日本"])
w.add_token_scores([0.0, -1.0, -2.5, 1.0])
w.add_token_types([3, 3, 1, 1])
w.add_bool("tokenizer.ggml.add_bos_token", True)
w.add_tensor("blk.0.attn_q.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
w.add_tensor("output_norm.weight", np.ones(4, dtype=np.float16))
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()

# Version 2 has the same layout for little-endian files.
b = bytearray(Path("foreign-v3.gguf").read_bytes())
b[4:8] = struct.pack("<I", 2)
Path("foreign-v2.gguf").write_bytes(b)

rng = np.random.default_rng(7)
values = rng.normal(size=(2, 512)).astype(np.float32)
values[0, 64:96] = 0  # a block of zeros
values[1, :256] = rng.integers(-1, 2, size=256) * np.float32(0.0123)  # ternary
w = GGUFWriter("quants.gguf", "test")
w.add_tensor("values", values)
for name in "F16 BF16 Q8_0 Q4_0 TQ1_0 TQ2_0 Q6_K".split():
    qtype = GGMLQuantizationType[name]
    if name == "Q6_K":  # the package cannot quantise to it
        data = rng.integers(0, 256, size=(2, 420), dtype=np.uint8)
        data[:, 208:210] = data[:, 418:420] = np.array([0x34, 0x12], dtype=np.uint8)
    else:
        data = quantize(values, qtype)
    w.add_tensor(name, data, raw_dtype=qtype)
    w.add_tensor(name + ".values", dequantize(data, qtype).astype(np.float32))
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
