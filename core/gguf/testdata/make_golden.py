"""Writes foreign-v2.gguf and foreign-v3.gguf with the Python package gguf.

Run in this directory: python make_golden.py (pip install gguf numpy).
"""

import struct
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

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
