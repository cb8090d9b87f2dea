"""Fixtures: the library and the command of build/, and a model of one layer."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nanochat
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(os.environ.get("NANOCHAT_COMMAND", ROOT / "build" / "bin" / "nanochat"))
# Without PYTHON*, which would add the source tree, and settings of pip and nanochat.
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("NANOCHAT_", "PYTHON", "PIP_"))}


def interpreters() -> dict[str, str]:
    """The Pythons of this machine, by version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {".".join(map(str, sys.version_info[:2])): getattr(sys, "_base_executable", sys.executable)}
    for minor in range(10, 14):
        name = f"python3.{minor}"
        for path in (shutil.which(name), *sorted(map(str, pyenv.glob(f"3.{minor}.*/bin/{name}")))):
            if not path or f"3.{minor}" in found:
                continue
            says = subprocess.run(
                [path, "-c", "import sys, venv, ensurepip; print(sys.version_info[1])"],
                capture_output=True,
                text=True,
                env=CLEAN,
                check=False,
            )
            if says.stdout.strip() == str(minor):  # a shim of pyenv may stand for a version that is not selected
                found[f"3.{minor}"] = path
    return dict(sorted(found.items()))


INTERPRETERS = interpreters()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model file with random weights, 300 tokens and 128 positions."""
    path = str(tmp_path_factory.mktemp("models") / "small.gguf")
    sets = ("vocab=300", "context=128", "dim=64", "ffn=64", "layers=1")
    subprocess.run(
        [COMMAND, "init", "tiny", path, "--seed", "7", *(a for s in sets for a in ("--set", f"model.{s}"))],
        check=True,
        capture_output=True,
    )
    return path


WORDS = "apple bread cloud delta ember field grape house iron jade kite lemon maple north ocean pearl river".split()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration for a training of 30 steps that take milliseconds, on a corpus made here."""
    top = tmp_path_factory.mktemp("training")
    dice = random.Random(1)
    for i in range(60):
        text = ""
        for _ in range(12):
            a, b, c = dice.sample(WORDS, 3)
            text += f"/// The {a} of a {b}.\npub fn {a}_{b}({c}: i64) -> i64 {{\n    {c} + {len(a)}\n}}\n\n"
        path = top / ("val" if i < 6 else "code") / f"file{i}.rs"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    vocabulary, data, code = str(top / "tokenizer.json"), str(top / "data"), str(top / "code")
    prepare = ["data", "prepare", code, "--val", str(top / "val"), "--tokenizer", vocabulary, "-o", data, "--near", "2"]
    for arguments in (["tokenizer", "train", code, "--vocab", "320", "-o", vocabulary], prepare):
        subprocess.run([COMMAND, *arguments], check=True, capture_output=True)
    config = top / "tiny.toml"
    config.write_text(
        "\n".join(
            ['name = "tiny-test"', "[model]", "dim = 32", "layers = 1", "heads = 1", "ffn = 64", "vocab = 320",
             "context = 32", "[data]", f'path = "{data}"', "[schedule]", "warmup = 5", "[train]", "steps = 30",
             "rows = 4", "log_every = 10", "eval_every = 10", "eval_tokens = 512", "checkpoint_every = 10", ""]
        )
    )  # fmt: skip
    return config


@pytest.fixture
def model(small: str) -> Iterator[nanochat.Model]:
    with nanochat.load_model(small, threads=1) as m:
        yield m
