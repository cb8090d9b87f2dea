"""The optional extension of bindings/gopy: classes and C interface in one Go runtime, each test in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import COMMAND, ROOT

MODEL = ROOT / "models" / "nano-5m-rust" / "nano-5m-rust.gguf"
LIBRARY = ROOT / "build" / "lib" / "libnanochat.so"

LOOK = """
import json, sys
from nanochat_gopy import introspect

def fails(call, *arguments):
    try:
        call(*arguments)
    except RuntimeError as e:
        return str(e)
    raise AssertionError(f"{call} did not fail")

path, shard, tokenizer, other = sys.argv[1:]
config = introspect.preset("nano-5m")
small = introspect.preset_with("nano-5m", introspect.go.Slice_string(["model.layers=2"]))
vocabulary = introspect.open_tokenizer(path)
ids = vocabulary.encode("fn main() { // \\u00e9")
data = introspect.open_shard(shard)
print(json.dumps({
    "presets": list(introspect.presets()),
    "weights": [config.weights(), config.ternary_weights(), config.embedding_weights(), small.weights()],
    "dim": [config.get("model.dim"), config.origin("model.dim"), config.doc("model.dim")],
    "again": introspect.parse_config("again.toml", config.toml()).weights(),
    "keys": len(config.keys()),
    "errors": [
        fails(introspect.parse_config, "my.toml", "[model]\\ndimm = 3\\n"),
        fails(introspect.preset, "nano-5n"),
        fails(config.get, "model.dimm"),
        fails(vocabulary.token, 4096),
        fails(introspect.open_shard, "/nonexistent"),
        fails(introspect.open_tokenizer, shard),
        fails(introspect.document, shard, other, 0),
        fails(introspect.document, shard, path, 4),
    ],
    "ids": list(ids),
    "text": vocabulary.decode(ids),
    "size": vocabulary.size(),
    "special": [vocabulary.is_special(s) for s in vocabulary.stops()],
    "found": vocabulary.find(vocabulary.token(ids[0])) == ids[0],
    "shard": [data.documents, data.tokens, data.text_bytes, data.vocabulary, data.used, data.longest],
    "common": sum(data.count(i) for i in data.common(1 << 20)),
    "document": introspect.document(shard, tokenizer, 0),
}))
"""

# The C interface of the extension, alone and through package nanochat.
ONE_RUNTIME = """
import ctypes, sys
from nanochat_gopy import introspect
import nanochat

extension = introspect._introspect.__file__
abi = ctypes.CDLL(extension)
assert abi.nanochat_abi_version() == 1
model = nanochat.load_model(sys.argv[1], threads=2)
from nanochat._library import library
assert library().path == extension, library().path
tokens = model.generate("fn main() {", max_tokens=16, seed=3).tokens
bos, *ids = model.tokenize("fn main() {")
assert list(introspect.open_tokenizer(sys.argv[1]).encode("fn main() {")) == ids
model.close()
maps = open("/proc/self/maps").read()
assert "libnanochat" not in maps and extension in maps
print(tokens)
"""

PLAIN = """
import sys, nanochat
print(nanochat.load_model(sys.argv[1], threads=2).generate("fn main() {", max_tokens=16, seed=3).tokens)
"""

SECOND = """
import sys, nanochat
nanochat.load_model(sys.argv[1]).close()
try:
    import nanochat_gopy
except ImportError as e:
    print(e)
"""


@pytest.fixture(scope="module")
def extension() -> Path:
    """The directory of the extension for this Python."""
    done = subprocess.run(
        [ROOT / "scripts" / "build-gopy", sys.executable], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip()).parents[1]


def run(extension: Path, program: str, *arguments: str | Path, **environment: str) -> str:
    path = os.pathsep.join((str(extension), str(ROOT / "python")))
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_introspection(extension: Path, tmp_path: Path, small: str) -> None:
    code = tmp_path / "code"
    code.mkdir()
    text = 'fn main() {\n    let answer = 6 * 7;\n    println!("{answer}");\n}\n' * 20
    for i in range(4):
        (code / f"m{i}.rs").write_text(text.replace("answer", f"answer_{i}") + f"// the {i}th\n" * (40 * i))
    prepared = tmp_path / "data"
    command = [COMMAND, "data", "prepare", code, "--tokenizer", MODEL, "-o", prepared, "--val-fraction", "0"]
    subprocess.run(command, check=True, capture_output=True)
    manifest = json.loads((prepared / "manifest.json").read_text())["splits"]["train"]
    shard = prepared / manifest["shards"][0]["file"]

    said = json.loads(run(extension, LOOK, MODEL, shard, prepared / "tokenizer.json", small))
    assert {"nano-5m", "tiny", "nano-125m"} < set(said["presets"])
    total, ternary, embedding, less = said["weights"]
    assert (total, ternary) == (6827532, 4718592) and ternary + embedding <= total and less < total
    assert said["dim"][0] == "256" and said["dim"][1].startswith("preset nano-5m:") and said["dim"][2]
    assert said["again"] == total and said["keys"] > 40

    line, preset, key, token, missing, damaged, other, none = said["errors"]
    assert "my.toml:2: model.dimm" in line and "model.dim?" in line
    assert "nano-5m" in preset and "model.dim?" in key and "4095" in token
    assert "/nonexistent" in missing and str(shard) in damaged and "another tokenizer" in other and "not 4" in none

    tokens = subprocess.run(
        [COMMAND, "tokenizer", "encode", MODEL, "fn main() { // é"], check=True, capture_output=True, text=True
    ).stdout.split()
    assert said["ids"] == [int(t) for t in tokens]
    assert said["text"] == "fn main() { // é" and said["size"] == 4096 and all(said["special"]) and said["found"]
    assert said["shard"][:3] == [manifest["documents"], manifest["tokens"], manifest["bytes"]]
    assert said["common"] == manifest["tokens"] and said["shard"][3] == 4096
    assert said["document"].startswith("fn main() {\n")


def test_one_runtime(extension: Path) -> None:
    """Package nanochat runs its models on the extension, and they write what they write on the library."""
    want = run(extension, PLAIN, MODEL, NANOCHAT_LIBRARY=str(LIBRARY))
    assert run(extension, ONE_RUNTIME, MODEL) == want


def test_no_second_runtime(extension: Path) -> None:
    assert "only one Go runtime" in run(extension, SECOND, MODEL)
