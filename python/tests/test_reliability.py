"""What holds however often it is tried: Ctrl-C, opening and closing, forks; and how fast things begin.

NANOCHAT_PYTHON_LONG=1 tries as often as docs/RELIABILITY.md says; each test prints a line of its table.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nanochat
import pytest
from conftest import COMMAND, ROOT
from test_process import python

LONG = os.environ.get("NANOCHAT_PYTHON_LONG", "") not in ("", "0")
SHIPPED = ROOT / "models" / "nano-5m-rust" / "nano-5m-rust.gguf"
# Seconds from Ctrl-C to KeyboardInterrupt: the promise, and room for a machine that does other things.
PROMPT = 0.2 if LONG else 2.0


def report(what: str, figure: str, test: str) -> None:
    print(f"RELIABILITY | {what} | {figure} | `python/tests {test}` |")


INTERRUPTED = """
    import os, signal, sys, threading, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    {before}
    import nanochat
    tries, what, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    class Stop(Exception): pass

    def interrupted(work, after):
        "Seconds from the signal to KeyboardInterrupt in work."
        sent = [0.0]
        def send():
            sent[0] = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
        timer = threading.Timer(after, send)
        try:
            timer.start()
            while True:
                work()
        except KeyboardInterrupt:
            took = time.monotonic() - sent[0]
        timer.join()
        return took

    {setup}
    {after}
    slowest = 0.0
    for i in range(tries):
        slowest = max(slowest, interrupted(work, {delay} + 0.003 * (i % 10)))
        check()
    print(slowest)
"""

MODEL = """
model = nanochat.load_model(path, threads=1, isolate={isolate})
want = model.generate("x", max_tokens=5).tokens
def check(): assert model.generate("x", max_tokens=5).tokens == want
"""
STREAM = """
o = dict(max_tokens=100, ignore_end=True, temperature=1.0)
whole = model.generate("fn", seed=1, **o).tokens
state = {"stream": model.stream("fn", seed=1, **o)}
def work():
    for token in state["stream"]: pass
    assert state["stream"].completion.tokens == whole  # no interrupt lost a token or gave one twice
    state["stream"].close()
    state["stream"] = model.stream("fn", seed=1, **o)
"""
CHAT = """
session = model.session()
def work():
    session.truncate(0)
    session.messages.clear()
    session.chat("fn", max_tokens=90)
"""
WORKS = {
    "generate": 'def work(): model.generate("fn", max_tokens=None, ignore_end=True)',
    "generate_batch": 'def work(): model.generate(["fn", "struct", "impl"], max_tokens=None, ignore_end=True)',
    "stream": STREAM,
    "chat": CHAT,
    "logits": 'def work(): model.logits("fn main")\nwork()  # an import of NumPy may swallow an interrupt',
}
TRAIN = """
run = {"train.out": sys.argv[4], "train.steps": 10**6, "train.eval_every": 0, "train.checkpoint_every": 0}
run["train.threads"] = 1
def work(): nanochat.train(path, overrides=run, progress=False)
def check(): pass
nanochat.train(path, overrides={**run, "train.steps": 15}, progress=False)
"""
DOWNLOAD = """
nanochat.list_models()  # loads modules, which is better not interrupted
def work():
    nanochat.download("slow-rust", progress=False)
    nanochat.cache.remove("slow-rust")
def check(): pass
"""


def interrupts(
    what: str, setup: str, *arguments: str, before: str = "", after: str = "", delay: float = 0.01, **env: str
) -> float:
    tries = 100 if LONG else 4
    indented = setup.replace("\n", "\n    ")
    program = INTERRUPTED.format(delay=delay, before=before, setup=indented, after=after)
    slowest = float(python(program, str(tries), what, *arguments, **env))
    report(
        f"Ctrl-C during `{what}`, usable afterwards",
        f"{tries} of {tries}, at most {1e3 * slowest:.0f} ms",
        "test_ctrl_c",
    )
    return slowest


@pytest.mark.parametrize("isolate", [False, True], ids=["here", "isolated"])
@pytest.mark.parametrize("what", list(WORKS))
def test_ctrl_c(small: str, what: str, isolate: bool) -> None:
    setup = MODEL.format(isolate=isolate) + WORKS[what]
    name = what + " with isolate" * isolate
    assert interrupts(name, setup, small) < PROMPT


@pytest.mark.parametrize("side", ["before", "after"])
def test_ctrl_c_beside_faulthandler(small: str, side: str) -> None:
    setup = MODEL.format(isolate=False) + WORKS["generate"]
    line = "import faulthandler; faulthandler.enable()"
    assert interrupts(f"generate, faulthandler enabled {side} it", setup, small, **{side: line}) < PROMPT


def test_ctrl_c_in_a_training(recipe: Path, tmp_path: Path) -> None:
    assert interrupts("train", TRAIN, str(recipe), str(tmp_path / "run"), delay=0.4) < PROMPT
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))  # each went on from the last
    assert len(lines) > 15


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A server that sends a model slowly, and what the environment needs to find it."""
    data = SHIPPED.read_bytes()

    class Slow(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            begin = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(data) - begin))
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.send_header("ETag", '"one"')
            self.end_headers()
            try:
                for at in range(begin, len(data), 16 << 10):
                    self.wfile.write(data[at : at + (16 << 10)])
                    time.sleep(0.01)
            except OSError:
                pass  # interrupted

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    import hashlib

    entry = {
        "name": "slow-rust", "revision": "1", "status": "published", "file": "slow-rust.gguf", "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "licence": "MIT", "description": "",
        "urls": [f"http://127.0.0.1:{server.server_port}/slow-rust.gguf"],
    }  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"updated": "now", "models": [entry]}))
    yield {"NANOCHAT_INDEX": str(tmp_path / "index.json"), "NANOCHAT_CACHE": str(tmp_path / "cache")}
    server.shutdown()
    server.server_close()
    thread.join()


def test_ctrl_c_in_a_download(slow: dict[str, str]) -> None:
    assert interrupts("download", DOWNLOAD, "", **slow) < PROMPT
    program = """
        import nanochat
        path = nanochat.download("slow-rust", progress=False)
        print(nanochat.cache.verify("slow-rust")["slow-rust"])
    """
    assert len(python(program, **slow).strip()) == 64  # it went on, and is whole


def test_memory_comes_back(small: str) -> None:
    cycles = 10_000 if LONG else 300
    program = """
        import os, sys
        import nanochat

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

        def cycle():
            with nanochat.load_model(sys.argv[1], threads=1) as m:
                m.generate("x", max_tokens=3)
                m.stream("x")
                with m.session() as s:
                    s.generate("x", max_tokens=2)

        for _ in range(100):
            cycle()
        memory, files, threads = resident(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        for _ in range(int(sys.argv[2])):
            cycle()
        assert len(os.listdir("/proc/self/fd")) == files
        print(resident() - memory, len(os.listdir("/proc/self/task")) - threads)
        """
    grown, threads = map(int, python(program, small, str(cycles)).split())
    figure = f"{grown / 2**20:+.2f} MiB, 0 files, {threads:+d} threads"
    report(f"{cycles} times load, generate, stream, session, close: growth", figure, "test_memory_comes_back")
    assert grown < 2 << 20
    assert threads <= 4  # the Go runtime keeps some for later


def test_forks(small: str) -> None:
    count = 1000 if LONG else 30
    program = """
        import multiprocessing, os, sys, threading, time
        import nanochat

        def work(model, stream):
            seen, path = 0, sys.argv[1]
            for call in (lambda: model.generate("x"), lambda: next(stream), lambda: nanochat.load_model(path),
                         lambda: model.session(), lambda: nanochat.list_models()):
                try:
                    call()
                except nanochat.ForkedError as e:
                    seen += "spawn" in e.hint
            model.close()
            stream.close()
            sys.exit(seen)

        if __name__ == "__main__":
            model = nanochat.load_model(sys.argv[1], threads=2)
            stream = model.stream("fn", max_tokens=50, ignore_end=True)
            def load():
                for _ in range(20):
                    model.generate("y", max_tokens=20)
            busy = [threading.Thread(target=load) for _ in range(3)]
            for t in busy:
                t.start()
            count, fork = int(sys.argv[2]), multiprocessing.get_context("fork")
            import warnings
            warnings.simplefilter("ignore")  # Python warns of forks with threads: that is what is tried
            for i in range(count * 9 // 10):
                if i % 2:
                    pid = os.fork()
                    if not pid:
                        work(model, stream)
                    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
                else:
                    p = fork.Process(target=work, args=(model, stream))
                    p.start()
                    p.join(60)
                    assert p.exitcode == 5, p.exitcode
            for t in busy:
                t.join()
            assert sum(t.id >= 0 for t in stream) == 50
            with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
                want = model.tokenize("x")
                for ids in pool.starmap(nanochat.Model.tokenize, [(model, "x")] * (count // 10), chunksize=1):
                    assert ids == want
            assert model.generate("x", max_tokens=9).tokens
        """
    begin = time.monotonic()
    python(program, small, str(count), timeout=600)
    took = time.monotonic() - begin
    report(
        f"{count} forks with a model open: os.fork, multiprocessing fork (ForkedError) and spawn (works)",
        f"0 hangs, {took:.0f} s", "test_forks",
    )  # fmt: skip


def test_first_token_of_a_new_process() -> None:
    program = """
        import nanochat
        model = nanochat.load_model("nano-5m-rust")
        print(next(model.stream("fn main() {")))
        """
    times = []
    for _ in range(10 if LONG else 3):
        begin = time.perf_counter()
        python(program)
        times.append(time.perf_counter() - begin)
    middle = statistics.median(times)
    report("a new Python process to its end after the first token of the bundled model, median",
           f"{1e3 * middle:.0f} ms", "test_first_token_of_a_new_process")  # fmt: skip
    assert middle < (0.4 if LONG else 4)


@pytest.mark.skipif(not LONG, reason="takes a minute; NANOCHAT_PYTHON_LONG=1")
@pytest.mark.parametrize(
    ("threads", "reach"),
    [(1, 0.03), (2, 0.5)],  # with two of two the reader takes time from them: a figure, not a promise
)
def test_streaming_costs_little(tmp_path: Path, threads: int, reach: float) -> None:
    path = tmp_path / "nano-125m.gguf"
    subprocess.run([COMMAND, "init", "nano-125m", path, "--seed", "1"], check=True, capture_output=True)
    tokens, prompt = 64, "fn main() {"
    ours, theirs = [], []
    with nanochat.load_model(path, threads=threads) as model:
        for _ in range(16):
            flags = [str(path), prompt, "-n", str(tokens), "--ignore-end", "--json", "--threads", str(threads)]
            out = subprocess.run([COMMAND, "generate", *flags], check=True, capture_output=True).stdout
            theirs.append(float(json.loads(out)["timing"]["decode_ms"]) / 1e3)
            with model.stream(prompt, max_tokens=tokens, ignore_end=True) as stream:
                next(stream)
                begin = time.perf_counter()
                for _ in stream:
                    pass
                ours.append(time.perf_counter() - begin)
    middle = statistics.median(ours)
    cost = middle / statistics.median(theirs) - 1
    share = f"{threads} of {os.cpu_count()} processors"
    what = f"streaming in Python against `nanochat generate`, nano-125m, {share}, medians of 16 turns each"
    figure = f"{100 * cost:+.1f} % time, {(tokens - 1) / middle:.0f} tok/s"
    report(what, figure, "test_streaming_costs_little")
    assert cost < reach
