"""A model in a process of its own: the same answers, and what happens to that process."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nanochat
import pytest
from nanochat import _wire
from test_process import python


@pytest.fixture(scope="module")
def apart(small: str) -> Iterator[nanochat.Model]:
    with nanochat.load_model(small, threads=1, isolate=True) as m:
        yield m


def gone(pid: int, seconds: float = 5) -> bool:
    """Whether a process ends in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_the_same_answers(apart: nanochat.Model, model: nanochat.Model) -> None:
    o = nanochat.GenOptions(max_tokens=30, temperature=1.1, seed=2**63, logprobs=2, logit_bias={7: -1.5}, stop=["zq"])
    want, got = model.generate("fn größe", **o), apart.generate("fn größe", **o)
    assert (got.text, got.tokens, got.finish_reason) == (want.text, want.tokens, want.finish_reason)
    assert got.logprobs == want.logprobs
    assert got.usage.decode_seconds > 0
    with model.stream("x", **o) as a, apart.stream("x", **o) as b:
        assert [(t, t.id, t.top) for t in a] == [(t, t.id, [tuple(x) for x in t.top]) for t in b]
    prompts = [f"fn f{i}(" for i in range(12)]
    assert [c.tokens for c in apart.generate(prompts, **o)] == [c.tokens for c in model.generate(prompts, **o)]
    assert apart.generate([]) == []
    assert apart.chat("fn", max_tokens=9).tokens == model.chat("fn", max_tokens=9).tokens
    assert apart.complete("fn", "}", max_tokens=9).tokens == model.complete("fn", "}", max_tokens=9).tokens
    assert apart.tokenize("größe\0") == model.tokenize("größe\0")
    assert apart.detokenize(model.tokenize("größe")) == "größe"
    assert apart.chat_tokens("x") == model.chat_tokens("x")
    assert apart.logprobs("fn größe") == model.logprobs("fn größe")
    assert (apart.logits("fn") == model.logits("fn")).all()
    assert (apart.embed("fn") == model.embed("fn")).all()
    assert apart.info == model.info
    assert "own process" in repr(apart)
    with apart.session() as s, model.session() as t:
        for text in ("fn a(", ") {"):
            assert s.generate(text, max_tokens=9).tokens == t.generate(text, max_tokens=9).tokens
        assert s.tokens == t.tokens
        s.truncate(2)
        assert len(s) == 2


def test_errors_come_over(apart: nanochat.Model) -> None:
    with pytest.raises(nanochat.ContextOverflowError, match="128") as e:
        apart.generate("a" * 500)
    assert e.value.hint is None or isinstance(e.value.hint, str)
    with pytest.raises(nanochat.InvalidArgumentError):
        apart.detokenize([300])
    with pytest.raises(TypeError, match="max_tokens"):
        apart.generate("x", max_token=3)  # type: ignore[call-overload]
    with pytest.raises(nanochat.GenerationTimeoutError):
        while True:
            apart.generate("x", max_tokens=None, ignore_end=True, timeout=0.001)
    with pytest.raises(nanochat.ModelNotFoundError, match="searched"):
        nanochat.load_model("./none.gguf", isolate=True)
    assert nanochat.system_info(isolate=True)["kernels"] == nanochat.system_info()["kernels"]


def test_close_ends_the_process(small: str) -> None:
    m = nanochat.load_model(small, threads=1, isolate=True)
    pid, stream = m._backend.pid, m.stream("x", max_tokens=20, ignore_end=True)
    m.close()
    m.close()
    with pytest.raises(nanochat.ClosedError):
        m.generate("x")
    assert sum(t.id >= 0 for t in stream) == 20  # goes on, as in this process
    stream.close()
    assert gone(pid)
    m = nanochat.load_model(small, threads=1, isolate=True)
    pid = m._backend.pid
    del m
    gc.collect()
    assert gone(pid)


def test_killed_process_is_an_error(small: str) -> None:
    m = nanochat.load_model(small, threads=1, isolate=True)
    with m.stream("x", max_tokens=None, ignore_end=True) as stream:
        next(stream)
        os.kill(m._backend.pid, signal.SIGKILL)
        with pytest.raises(nanochat.WorkerDiedError, match="SIGKILL"):
            while True:
                next(stream)
                m.tokenize("x")
    for call in (lambda: m.generate("x"), lambda: m.tokenize("x"), lambda: m.session()):
        with pytest.raises(nanochat.WorkerDiedError, match="signal 9"):
            call()
    m.close()
    with nanochat.load_model(small, threads=1, isolate=True) as other:
        assert other.generate("x", max_tokens=3).tokens


def test_cancel(apart: nanochat.Model) -> None:
    with apart.stream("x", max_tokens=None, ignore_end=True) as stream:
        next(stream)
        stream.cancel()
        with pytest.raises(nanochat.CancelledError):
            for _ in stream:
                pass
        assert stream.completion.finish_reason == "cancelled"


def test_threads_and_tasks(apart: nanochat.Model, model: nanochat.Model) -> None:
    want = [model.generate("fn", temperature=1, seed=s, max_tokens=30).text for s in range(8)]
    got = [""] * 8

    def work(s: int) -> None:
        got[s] = apart.generate("fn", temperature=1, seed=s, max_tokens=30).text

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == want

    async def read(seed: int) -> str:
        return "".join([t async for t in apart.astream("fn", temperature=1, seed=seed, max_tokens=30)])

    async def run() -> list[str]:
        return list(await asyncio.gather(*(read(s) for s in range(4))))

    assert asyncio.run(run()) == want[:4]


def test_pickle(apart: nanochat.Model) -> None:
    with pickle.loads(pickle.dumps(apart)) as copy:
        assert copy._backend.pid != apart._backend.pid
        assert copy.tokenize("x") == apart.tokenize("x")


def test_after_a_fork_and_beside_a_library_that_cannot_be_loaded(small: str) -> None:
    python(
        """
        import os, sys
        import nanochat
        from nanochat import _library

        model = nanochat.load_model(sys.argv[1], threads=1)
        apart = nanochat.load_model(sys.argv[1], threads=1, isolate=True)
        want = model.generate("x", max_tokens=9).tokens
        pid = os.fork()
        if not pid:
            try:
                apart.generate("x")
            except nanochat.ForkedError as e:
                assert "isolate=True" in e.hint
            with nanochat.load_model(sys.argv[1], threads=1, isolate=True) as m:
                assert m.generate("x", max_tokens=9).tokens == want
            apart.close()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert apart.generate("x", max_tokens=9).tokens == want
        apart.close()
        """,
        small,
    )
    program = """
        import sys
        import nanochat
        from nanochat import _library

        def broken():
            raise nanochat.LibraryNotFoundError("cannot allocate memory in static TLS block")

        _library.load = broken
        with nanochat.load_model(sys.argv[1], threads=1, isolate=True) as m:
            assert m.generate("x", max_tokens=3).tokens
        assert "libnanochat" not in open("/proc/self/maps").read()
        """
    python(program, small)


def test_process_ends_with_its_parent(small: str) -> None:
    program = """
        import os, signal, sys
        import nanochat
        m = nanochat.load_model(sys.argv[1], threads=1, isolate=True)
        stream = m.stream("x", max_tokens=None, ignore_end=True)
        next(stream)
        print(m._backend.pid, flush=True)
        {end}
        """
    for end in ("pass", "os._exit(0)", "sys.exit(0)"):
        assert gone(int(python(program.format(end=end), small))), end


def test_ctrl_c_loses_no_token(apart: nanochat.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    want = apart.generate("x", max_tokens=100, ignore_end=True).tokens
    with apart.stream("x", max_tokens=100, ignore_end=True) as stream:
        got: list[int] = []
        while stream._ended is None:
            timer = threading.Timer(0.001, signal.raise_signal, [signal.SIGINT])
            handler = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                timer.start()
                got += [t.id for t in stream if t.id >= 0]
                timer.join()
            except KeyboardInterrupt:
                timer.join()
            finally:
                signal.signal(signal.SIGINT, handler)
        assert stream.completion.tokens == want


@pytest.mark.parametrize("value", [None, True, 3, 1.5, "ü\ud800", b"\0\xff", [1, [b"x"]], {"$object": 1, "a": b"x"}])
def test_wire(value: object) -> None:
    packed = _wire.pack(value, lambda o: {"$object": 9})
    import json

    assert _wire.unpack(json.loads(json.dumps(packed)), lambda r: "object") == value


def test_worker_takes_no_other_methods(apart: nanochat.Model) -> None:
    for method in ("__init__", "_stream", "nothing", "handle"):
        with pytest.raises(nanochat.InvalidArgumentError, match="no method"):
            apart._backend._connection.call(0, method)
    assert sys.getrefcount(apart)
