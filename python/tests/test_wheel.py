"""The wheel: what is in it, where it runs, and that an empty environment without a network needs nothing else.

It is tested on every Python 3.10 to 3.13 that is found on PATH or with pyenv.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nanochat
import pytest
from conftest import CLEAN, COMMAND, INTERPRETERS, ROOT
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

MODEL = "nano-5m-rust"
PROGRAM = f"""
import nanochat
model = nanochat.load_model("{MODEL}")
for piece in model.stream("fn main() {{", max_tokens=40, seed=1):
    print(piece, end="")
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**CLEAN, **environment}, cwd=cwd, check=False, timeout=300
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def build(directory: Path, tree: Path = ROOT) -> Path:
    """The wheel of a source tree."""
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q")
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", directory, tree / "python", cwd=directory)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    zipfile.ZipFile(wheel).extractall(wheel.parent / "unpacked")
    return wheel.parent / "unpacked" / "nanochat"


def test_contents(wheel: Path, unpacked: Path) -> None:
    version = nanochat.__version__
    assert re.fullmatch(rf"nanochat-{re.escape(version)}-py3-none-manylinux_2_\d\d_\w+\.whl", wheel.name)
    assert f'NANOCHAT_VERSION_STRING "{version}"' in (ROOT / "include" / "nanochat.h").read_text()
    assert wheel.stat().st_size < 25 << 20
    names = {n.removeprefix("nanochat/") for n in zipfile.ZipFile(wheel).namelist()}
    assert {"lib/libnanochat.so", "bin/nanochat", "py.typed", "share/nanochat/THIRD_PARTY_LICENSES.txt"} < names
    assert not [n for n in names if "test" in n]
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "python" / "LICENSE").read_bytes()

    shipped, here = unpacked / "share/nanochat/models" / MODEL, ROOT / "models" / MODEL
    for name in (f"{MODEL}.gguf", "README.md"):
        assert (shipped / name).read_bytes() == (here / name).read_bytes()
    assert (shipped / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    index = (ROOT / "core/zoo/index.json").read_text()
    assert hashlib.sha256((shipped / f"{MODEL}.gguf").read_bytes()).hexdigest() in index


@pytest.mark.parametrize("name", ["lib/libnanochat.so", "bin/nanochat"])
def test_linkage(wheel: Path, unpacked: Path, name: str) -> None:
    """The tag is true of what is inside, and the library shows nothing but its interface."""
    with (unpacked / name).open("rb") as f:
        elf = ELFFile(f)
        dynamic = elf.get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        needed = {t.needed for t in dynamic.iter_tags("DT_NEEDED")}
        assert not [t for kind in ("DT_RPATH", "DT_RUNPATH") for t in dynamic.iter_tags(kind)]
        versions = {
            tuple(map(int, v.name.removeprefix("GLIBC_").split(".")))
            for _, auxiliaries in elf.get_section_by_name(".gnu.version_r").iter_versions()
            for v in auxiliaries
        }
        exported = {
            s.name
            for s in elf.get_section_by_name(".dynsym").iter_symbols()
            if s.entry.st_shndx not in ("SHN_UNDEF", "SHN_ABS") and s.entry.st_info.bind != "STB_LOCAL"
        }
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    tag = re.search(r"manylinux_(\d+)_(\d+)_", wheel.name)
    assert tag and max(versions) <= tuple(map(int, tag.groups()))
    if name.startswith("lib"):
        declared = set(re.findall(r"\b(nanochat_\w+)\(", (ROOT / "include" / "nanochat.h").read_text()))
        assert exported and exported <= declared, exported - declared


def test_auditwheel(wheel: Path, tmp_path: Path) -> None:
    shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel, cwd=tmp_path).split())
    platform = wheel.stem.split("-")[-1]
    assert f'is consistent with the following platform tag: "{platform}"' in shown, shown
    used = set(re.findall(r"(\S+\.so\S*) with versions", shown))
    assert used <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}, shown


def test_reproducible(wheel: Path, tmp_path: Path) -> None:
    """Another directory gives the same file."""
    tree = tmp_path / "elsewhere"
    listed = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=tmp_path)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and "/testdata/" not in name:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    commit = run("git", "-C", ROOT, "describe", "--tags", "--always", "--dirty", cwd=tmp_path)
    (tree / "COMMIT").write_text(commit)
    (tmp_path / "again").mkdir()
    again = build(tmp_path / "again", tree)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()


@pytest.mark.parametrize("version", INTERPRETERS)
def test_offline(wheel: Path, tmp_path: Path, version: str) -> None:
    """Installed in an empty environment, four lines print Rust; there is no network, and nothing is written."""
    alone = ["unshare", "-rn"]  # a network name space without a route
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = []
    python = tmp_path / "venv" / "bin" / "python"
    run(INTERPRETERS[version], "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    run(*alone, python, "-m", "pip", "install", "-q", "--no-index", "--disable-pip-version-check", wheel, cwd=tmp_path)

    home = tmp_path / "home"
    home.mkdir()
    want = run(COMMAND, "generate", MODEL, "fn main() {", "-n", "40", "--seed", "1", cwd=tmp_path)
    assert ";" in want
    text = run(*alone, python, "-c", PROGRAM, cwd=tmp_path, HOME=str(home))
    assert text.strip() == want.strip()
    program = tmp_path / "venv" / "bin" / "nanochat"
    text = run(
        *alone, program, "generate", MODEL, "fn main() {", "-n", "40", "--seed", "1", cwd=tmp_path, HOME=str(home)
    )
    assert text == want
    path = run(python, "-c", "from nanochat import _library as l; print(l.library().path)", cwd=tmp_path)
    assert path.startswith(str(tmp_path)), path
    assert not [*home.iterdir()]
