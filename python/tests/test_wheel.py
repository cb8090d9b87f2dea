"""The wheel, built and installed in an empty environment without a package index."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

PROGRAM = """
import sys, nanochat
model = nanochat.load_model(sys.argv[1])
assert "site-packages" in nanochat._model.c.library().path, nanochat._model.c.library().path
print(model.generate("fn main() {", max_tokens=9).tokens)
"""


def test_wheel(tmp_path: Path, small: str) -> None:
    pytest.importorskip("hatchling")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NANOCHAT_", "PYTHON", "PIP_"))}
    pip = ["-m", "pip", "--disable-pip-version-check", "-q"]

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    wheel = [*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT / "python"]
    run(sys.executable, *wheel)
    (path,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"nanochat-[\d.]+-py3-none-manylinux_2_\d\d_\w+\.whl", path.name)
    assert path.stat().st_size < 25 << 20
    names = zipfile.ZipFile(path).namelist()
    assert {"nanochat/lib/libnanochat.so", "nanochat/bin/nanochat", "nanochat/py.typed"} < set(names)
    assert not [n for n in names if "test" in n]

    python = tmp_path / "venv" / "bin" / "python"
    venv.create(tmp_path / "venv", with_pip=True)
    run(python, *pip, "install", "--no-index", path)
    want = run(tmp_path / "venv" / "bin" / "nanochat", "generate", small, "fn main() {", "-n", "9", "--json")
    tokens = run(python, "-c", PROGRAM, small)
    assert re.sub(r"\s", "", tokens) in re.sub(r"\s", "", want)
