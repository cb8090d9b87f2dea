"""What the package does to its process: imports, signals, forks, memory. Each in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nanochat
import pytest
from conftest import ROOT
from nanochat import _library


def python(program: str, *arguments: str, interpreter: str = sys.executable, **env: str) -> str:
    """Runs a program and returns what it prints."""
    done = subprocess.run(
        [interpreter, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
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
        assert not {"numpy", "urllib.request", "ctypes", "asyncio"} & set(sys.modules)
        assert "load_model" in dir(nanochat)
        nanochat.load_model
        assert "libnanochat" not in open("/proc/self/maps").read()
        print(took)
    """
    assert float(python(program)) < 0.05


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


INTERRUPTED = """
    import faulthandler, os, signal, sys, threading, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    {before}
    import nanochat
    model = nanochat.load_model(sys.argv[1], threads=1)
    {after}
    slowest = 0
    for i in range(20):
        sent = 0.0
        def send():
            global sent
            sent = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
        timer = threading.Timer(0.02, send)
        try:
            timer.start()
            while True:
                model.generate(["fn"] * (1 + i % 3), max_tokens=None, ignore_end=True)
        except KeyboardInterrupt:
            slowest = max(slowest, time.monotonic() - sent)
        timer.join()
    assert model.generate("x", max_tokens=5).tokens
    print(slowest)
"""


@pytest.mark.parametrize(("before", "after"), [("", ""), ("faulthandler.enable()", ""), ("", "faulthandler.enable()")])
def test_ctrl_c(small: str, before: str, after: str) -> None:
    assert float(python(INTERRUPTED.format(before=before, after=after), small)) < 2  # 0.2 on a machine at rest


def test_fork_says_so_and_spawn_works(small: str) -> None:
    python(
        """
        import multiprocessing, os, sys
        import nanochat

        model = nanochat.load_model(sys.argv[1], threads=2)
        stream = model.stream("fn", max_tokens=50, ignore_end=True)
        for _ in range(20):
            pid = os.fork()
            if not pid:
                seen, path = 0, sys.argv[1]
                for call in (lambda: model.generate("x"), lambda: next(stream), lambda: nanochat.load_model(path)):
                    try:
                        call()
                    except nanochat.ForkedError as e:
                        seen += "spawn" in e.hint
                model.close()
                stream.close()
                sys.exit(seen)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        assert sum(t.id >= 0 for t in stream) == 50
        want = model.generate("x", max_tokens=9).tokens
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(nanochat.Model.tokenize, (model, "x")) == model.tokenize("x")
        """,
        small,
    )


def test_memory_comes_back(small: str) -> None:
    python(
        """
        import os, sys
        import nanochat

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

        def cycle():
            with nanochat.load_model(sys.argv[1], threads=1) as m:
                m.generate("x", max_tokens=3)
                m.stream("x")

        for _ in range(40):
            cycle()
        memory, files, threads = resident(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        for _ in range(300):
            cycle()
        assert resident() - memory < 2 << 20, resident() - memory
        assert len(os.listdir("/proc/self/fd")) == files
        assert len(os.listdir("/proc/self/task")) <= threads + 4
        """,
        small,
    )


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


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_other_interpreters(small: str, version: str) -> None:
    found = shutil.which(f"python{version}")
    if not found or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
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
