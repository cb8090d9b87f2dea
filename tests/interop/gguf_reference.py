"""Reads and writes GGUF files with the Python package gguf, for gguf_test.go.

dump OUT.json OUT.bin FILE...  says what stands in the files; the values of all
                               tensors, as float32, go to OUT.bin
write DIR                      writes files with the package
ternary FORMAT.md FILE NAME ROWS COLS GROUP OUT.bin
                               runs the function printed in FORMAT.md
sizes OUT.json                 the storage types: name, number, block
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

np.seterr(all="ignore")  # random bytes hold infinities and NaN
PLAIN = "I8 I16 I32 I64 F64".split()  # the package has no dequantize for these


def plain(value):
    """value without NumPy types; floats as text, because JSON has no NaN."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return value.hex() if isinstance(value, float) else value


def dump(out_json, out_bin, *paths):
    files = []
    with open(out_bin, "wb") as values:
        for path in paths:
            reader = GGUFReader(path)
            fields = {
                name: {"types": [t.name.lower() for t in f.types], "value": plain(f.contents())}
                for name, f in reader.fields.items()
                if not name.startswith("GGUF.")
            }
            tensors = []
            for t in reader.tensors:
                x = np.ascontiguousarray(t.data)
                tensors.append(
                    {
                        "name": t.name,
                        "type": t.tensor_type.name,
                        "dims": [int(d) for d in t.shape],
                        "offset": int(t.data_offset) - int(reader.data_offset),
                        "sha256": hashlib.sha256(x.tobytes()).hexdigest(),
                    }
                )
                if t.tensor_type.name not in PLAIN:
                    x = dequantize(x, t.tensor_type)
                x.astype("<f4").tofile(values)
            version = int(reader.fields["GGUF.version"].contents())
            files.append(
                {
                    "version": version,
                    "alignment": int(reader.alignment),
                    "data": int(reader.data_offset),
                    "fields": fields,
                    "tensors": tensors,
                }
            )
    Path(out_json).write_text(json.dumps(files))


def write(directory):
    rng = np.random.default_rng(3)
    for i in range(12):
        w = GGUFWriter(Path(directory, f"python{i}.gguf"), "llama")
        w.add_name("x" * i)
        w.add_uint8("v.u8", 200)
        w.add_int8("v.i8", -100)
        w.add_uint16("v.u16", 60000)
        w.add_int16("v.i16", -30000)
        w.add_uint32("v.u32", 1 << 31)
        w.add_int32("v.i32", -(1 << 31))
        w.add_uint64("v.u64", (1 << 64) - 1)
        w.add_int64("v.i64", -(1 << 63))
        w.add_float32("v.f32", 0.1)
        w.add_float64("v.f64", 0.1)
        w.add_bool("v.bool", i % 2 == 0)
        w.add_array("l.str", ["a", "é", "日本語", ""][: i % 4 + 1])
        w.add_array("l.int", list(range(i + 1)))
        w.add_array("l.float", [0.5] * (i + 1))
        w.add_array("l.bool", [True, False])
        w.add_key_value("l.u8", [1, 2, 255], GGUFValueType.ARRAY, GGUFValueType.UINT8)
        w.add_key_value("l.i64", [-1, 1 << 40], GGUFValueType.ARRAY, GGUFValueType.INT64)
        w.add_key_value("l.f64", [1e300], GGUFValueType.ARRAY, GGUFValueType.FLOAT64)
        if i % 3:
            w.add_custom_alignment(32 << i % 3)
        x = rng.normal(size=(i + 1, 256)).astype(np.float32)
        for name in "F32 F16 BF16 Q8_0 Q4_0 TQ1_0 TQ2_0 Q5_0 Q4_1".split():
            qtype = GGMLQuantizationType[name]
            w.add_tensor("t." + name, quantize(x, qtype), raw_dtype=qtype)
        q6 = rng.integers(0, 256, size=(i + 1, 210), dtype=np.uint8)
        q6[:, 209] &= 0x3F  # a finite scale
        w.add_tensor("t.Q6_K", q6, raw_dtype=GGMLQuantizationType.Q6_K)
        for dtype in (np.int8, np.int16, np.int32, np.int64, np.float64):
            w.add_tensor("n." + dtype.__name__, rng.integers(-100, 100, size=(2, 3, i + 1)).astype(dtype))
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


def ternary(format_md, path, name, rows, cols, group, out):
    (code,) = re.findall(r"^```python\n(.*?)^```", Path(format_md).read_text(), re.S | re.M)
    assert len(code.splitlines()) <= 10, "the function in FORMAT.md has more than ten lines"
    scope = {"np": np}
    exec(code, scope)
    x = scope["ternary"](GGUFReader(path), name, int(rows), int(cols), int(group))
    assert x.shape == (int(rows), int(cols))
    x.astype("<f4").tofile(out)


def sizes(out_json):
    table = {t.name: [int(t), *GGML_QUANT_SIZES[t]] for t in GGML_QUANT_SIZES}
    Path(out_json).write_text(json.dumps(table))


if __name__ == "__main__":
    {"dump": dump, "write": write, "ternary": ternary, "sizes": sizes}[sys.argv[1]](*sys.argv[2:])
