"""The sdist: that it has all it takes to build, and that missing tools are requested.

`NANOCHAT_LONG=1` builds and runs it where neither Go nor a C compiler is installed: scripts/wheel-alone, some minutes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", directory],
        cwd=ROOT / "python",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = directory.glob("nanochat-*.tar.gz")
    return path


@pytest.fixture
def hook() -> ModuleType:
    """hatch_build.py, afresh: it remembers what it found."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "python" / "hatch_build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contents(sdist: Path, tmp_path: Path) -> None:
    """The sources are complete: Go finds every package and every embedded file in them, without a network."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path, members, filter="data")
    assert all(m.isfile() for m in members)
    (top,) = tmp_path.iterdir()
    names = {m.name.removeprefix(f"{top.name}/") for m in members}
    model = "source/models/nano-5m-rust/nano-5m-rust.gguf"
    assert {"PKG-INFO", "LICENSE", "hatch_build.py", "nanochat/py.typed", "source/COMMIT", model} < names
    assert not [n for n in names if n.endswith("_test.go") or n.startswith("source/build")]
    assert sdist.stat().st_size < 25 << 20

    listed = subprocess.run(
        ["go", "list", "-deps", "-f", "{{with .Error}}{{.}}{{end}}", "./cmd/nanochat", "./capi/libnanochat"],
        cwd=top / "source",
        env={**os.environ, "GOFLAGS": "-mod=vendor", "GOPROXY": "off", "GOWORK": "off", "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0 and not listed.stdout.strip(), listed.stdout + listed.stderr


def test_requests(hook: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where Go or a C compiler is missing, a package that brings it is asked for."""
    build = hook.CustomBuildHook(str(ROOT / "python"), {}, None, None, "", "wheel")
    assert build.dependencies() == []

    monkeypatch.setenv("CC", "/nonexistent/cc")
    hook.find_cc.cache_clear()
    with pytest.raises(RuntimeError, match="CC=/nonexistent/cc cannot compile"):
        build.dependencies()

    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    hook.find_cc.cache_clear()
    assert build.dependencies() == [hook.C_PACKAGE]
    monkeypatch.setattr(hook, "find_go", lambda module: None)
    assert build.dependencies() == [hook.GO_PACKAGE, hook.C_PACKAGE]

    monkeypatch.setenv("NANOCHAT_TARGET", "sparc")
    with pytest.raises(RuntimeError, match="not for sparc"):
        build.dependencies()


def test_old_go_is_passed_over(hook: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho go1.20.1\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hook.find_go(ROOT) != str(go)
    go.write_text("#!/bin/sh\necho go1.99.0\n")
    hook.find_go.cache_clear()
    assert hook.find_go(ROOT) == str(go)


@pytest.mark.skipif("NANOCHAT_LONG" not in os.environ, reason="set NANOCHAT_LONG=1: it takes minutes")
def test_alone(sdist: Path) -> None:
    done = subprocess.run([ROOT / "scripts" / "wheel-alone", sdist], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
