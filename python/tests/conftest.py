"""Fixtures: the library and the command of build/, and a model of one layer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nanochat
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(os.environ.get("NANOCHAT_COMMAND", ROOT / "build" / "bin" / "nanochat"))


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


@pytest.fixture
def model(small: str) -> Iterator[nanochat.Model]:
    with nanochat.load_model(small, threads=1) as m:
        yield m
