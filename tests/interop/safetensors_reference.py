"""Reads and writes files with the Python package safetensors, for safetensors_test.go.

read FILE OUT.json   says what stands in the file: the bits of all values as hex
write FILE           writes a file with every type that NumPy has
"""

import json
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

TYPES = "float32 float16 float64 bool uint8 int8 uint16 int16 uint32 int32 uint64 int64".split()


def read(path, out):
    with safe_open(path, framework="numpy") as f:
        metadata = f.metadata()
    tensors = {
        name: {"type": str(t.dtype), "shape": list(t.shape), "hex": t.tobytes().hex()}
        for name, t in load_file(path).items()
    }
    with open(out, "w") as f:
        json.dump({"metadata": metadata, "tensors": tensors}, f)


def write(path):
    rng = np.random.default_rng(1)
    tensors = {f"t.{name}": (rng.integers(0, 2, (3, 5)) * 3).astype(name) for name in TYPES}
    tensors["number"] = np.array(2.5, np.float32)
    tensors["empty"] = np.zeros((4, 0), np.float32)
    tensors['names "need" escapes\n\u00fc'] = np.arange(7, dtype=np.float32)
    save_file(tensors, path, metadata={"format": "np", "\u00fc": "\U0001f600"})


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
