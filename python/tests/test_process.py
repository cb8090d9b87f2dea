"""What the package does to its process: imports, signals, forks, memory. Each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import nanochat
import pytest
from conftest import INTERPRETERS, ROOT
from nanochat import _library


def python(program: str, *arguments: str, interpreter: str = sys.executable, timeout: float = 300, **env: str) -> str:
    """Runs a program and returns what it prints."""
    done = subprocess.run(
        [interpreter, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(Path(nanochat.__file__).parents[1]), **env},
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_import_loads_nothing() -> None:
    program = """
        import sys, time
        begin = time.process_time() # others may be using the processor
        import nanochat
        took = time.process_time() - begin
        assert "libnanochat" not in open("/proc/self/maps").read()
        assert not {"numpy", "urllib.request", "ctypes", "asyncio", "socket", "dataclasses"} & set(sys.modules)
        assert "load_model" in dir(nanochat)
        nanochat.load_model
        nanochat.train
        assert "libnanochat" not in open("/proc/self/maps").read()
        assert not {"numpy", "IPython"} & set(sys.modules)
        print(took)
    """
    times = sorted(float(python(program)) for _ in range(10))
    figure = f"{1e3 * times[5]:.1f} ms"
    print(f"RELIABILITY | `import nanochat`, median of 10 new processes | {figure} | `python/tests test_process` |")
    assert times[5] < 0.05


def test_every_public_name_exists() -> None:
    for name in nanochat.__all__:
        assert getattr(nanochat, name).__doc__, name
    with pytest.raises(AttributeError, match="colour"):
        nanochat.colour  # noqa: B018


def test_versions() -> None:
    header = (ROOT / "include" / "nanochat.h").read_text()
    assert f'#define NANOCHAT_VERSION_STRING "{nanochat.__version__}"' in header
    assert f"#define NANOCHAT_ABI_VERSION {_library.ABI_VERSION}u" in header


def test_structures_are_those_of_the_header() -> None:
    snapshot = (ROOT / "tests" / "abi" / "testdata" / f"abi-{_library.ABI_VERSION}.txt").read_text().splitlines()
    known = {
        "nanochat_model_options": _library.ModelOptions,
        "nanochat_generate_options": _library.GenerateOptions,
        "nanochat_piece": _library.Piece,
        "nanochat_stats": _library.Stats,
        "nanochat_zoo_options": _library.ZooOptions,
    }
    fields = 0
    for line in snapshot:
        match line.split():
            case ["field", place, "at", offset, "bytes", size]:
                struct, name = place.split(".")
                field = getattr(known[struct], name)
                assert (field.offset, field.size) == (int(offset), int(size)), place
                fields += 1
            case ["function", *words]:
                name = next(w for w in words if "(" in w).split("(")[0].lstrip("*").removeprefix("nanochat_")
                if name in _library.PROTOTYPES and "(void)" not in line:
                    assert len(_library.PROTOTYPES[name][1]) == line.count(",") + 1, line
    assert fields == sum(len(s._fields_) for s in known.values())


def test_log(small: str) -> None:
    out = python(
        """
        import logging, sys, time
        import nanochat

        lines = []

        class Keep(logging.Handler):
            def emit(self, record):
                lines.append((record.levelname, record.getMessage(), record.nanochat["msg"]))

        logging.getLogger("nanochat").addHandler(Keep())
        with nanochat.load_model(sys.argv[1], threads=1):
            pass
        time.sleep(0.1)
        assert not lines  # silent unless asked
        nanochat.log("debug")
        for _ in range(100):
            with nanochat.load_model(sys.argv[1], threads=1):
                time.sleep(0.02)
            if lines:
                break
        nanochat.log(None)
        nanochat.log(None)
        assert lines[0][2] in lines[0][1], lines
        print(lines[0])
        """,
        small,
    )
    assert "INFO" in out or "DEBUG" in out


def test_library_that_is_not_there(tmp_path: Path) -> None:
    for name, content in (("none.so", None), ("text.so", b"no library")):
        path = tmp_path / name
        if content:
            path.write_bytes(content)
        out = python(
            """
            import nanochat
            try:
                nanochat.load_model("x.gguf")
            except nanochat.LibraryNotFoundError as e:
                print(isinstance(e, ImportError), e)
            """,
            NANOCHAT_LIBRARY=str(path),
        )
        assert "True" in out and name in out and "hint:" in out


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_other_interpreters(small: str, version: str) -> None:
    if not (found := INTERPRETERS.get(version)):
        pytest.skip(f"no Python {version} here")
    program = """
        import asyncio, pickle, sys
        import nanochat

        async def text(model):
            return "".join([t async for t in model.astream("fn", max_tokens=20, seed=3, temperature=1.0)])

        with nanochat.load_model(sys.argv[1], threads=1) as model:
            done = model.generate("fn", max_tokens=20, seed=3, temperature=1.0)
            assert asyncio.run(text(model)) == done.text
            with pickle.loads(pickle.dumps(model)) as copy:
                print(copy.generate("fn", max_tokens=20, seed=3, temperature=1.0).tokens)
        """
    assert python(program, small, interpreter=found) == python(program, small)
