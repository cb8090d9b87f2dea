"""Models by name: looking up, downloading from a server of the test, checking, removing."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nanochat
import pytest


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shop(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An index with a model that a server has, an empty cache, and the directory of the server."""
    files = tmp_path / "files"
    files.mkdir()
    data = Path(small).read_bytes()
    (files / "tiny-rust.gguf").write_bytes(data)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(files)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    entry = {
        "name": "tiny-rust", "revision": "7", "status": "published", "file": "tiny-rust.gguf", "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "licence": "MIT", "description": "<b>small</b>",
        "urls": [f"http://127.0.0.1:{server.server_port}/tiny-rust.gguf"],
    }  # fmt: skip
    planned = {
        "name": "big-rust", "revision": "1", "status": "planned", "file": "big-rust.gguf", "licence": "MIT",
        "description": "later", "instead": "tiny-rust",
    }  # fmt: skip
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"updated": "2026-11", "models": [entry, planned]}))
    monkeypatch.setenv("NANOCHAT_INDEX", str(index))
    monkeypatch.setenv("NANOCHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NANOCHAT_OFFLINE", raising=False)
    yield files
    server.shutdown()
    server.server_close()
    thread.join()


def test_name_is_downloaded_once(shop: Path, small: str) -> None:
    seen: list[nanochat.Progress] = []
    states = {e.name: e.state for e in nanochat.list_models()}
    assert states == {"tiny-rust": "available", "big-rust": "planned"}
    with nanochat.load_model("tiny-rust", threads=1, progress=seen.append) as m:
        assert m.info.name == "tiny-rust"
        assert m.generate("x", max_tokens=3).tokens
    assert seen[-1].state == "done" and seen[-1].fraction == 1.0
    assert {p.name for p in seen} == {"tiny-rust"}
    (shop / "tiny-rust.gguf").unlink()  # the network is not asked again
    count = len(seen)
    with nanochat.load_model("tiny-rust", revision="7", progress=seen.append):
        assert len(seen) == count
    (entry,) = nanochat.cache.list()
    assert (entry.name, entry.state, entry.here) == ("tiny-rust", "cached", True)
    assert nanochat.download("tiny-rust") == Path(entry.path or "")
    assert nanochat.cache.verify() == {"tiny-rust": entry.sha256}
    assert nanochat.cache.directory is not None and nanochat.cache.directory.name == "cache"
    assert "&lt;b&gt;" in nanochat.list_models()._repr_html_()
    Path(entry.path or "").chmod(0o644)
    with open(entry.path or "", "r+b") as f:
        f.seek(5000)
        f.write(b"\xff\xfe\xfd")
    with pytest.raises(nanochat.ChecksumError):
        nanochat.cache.verify("tiny-rust")
    assert nanochat.cache.remove("tiny-rust") == Path(small).stat().st_size
    assert not nanochat.cache.list()


def test_isolated_model_is_downloaded(shop: Path) -> None:
    seen: list[nanochat.Progress] = []
    with nanochat.load_model("tiny-rust", threads=1, progress=seen.append, isolate=True) as m:
        assert m.generate("x", max_tokens=3).tokens
    assert seen[-1].state == "done"


def test_a_zoo_of_its_own(shop: Path, tmp_path: Path) -> None:
    zoo = nanochat.ModelZoo(cache_dir=tmp_path / "other")
    assert zoo.path("tiny-rust") is None
    path = zoo.download("tiny-rust", progress=False)
    assert path.is_relative_to(tmp_path / "other") and zoo.path("tiny-rust") == path
    assert zoo.verify("tiny-rust") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not nanochat.cache.list()
    with zoo.load("tiny-rust", threads=1) as m, nanochat.load_model("tiny-rust", cache_dir=tmp_path / "other") as n:
        assert m.info.path == n.info.path == str(path)
    assert [e.state for e in zoo.list() if e.name == "tiny-rust"] == ["cached"]
    assert zoo.remove("tiny-rust") > 0


def test_wrong_bytes_are_never_a_model(shop: Path) -> None:
    data = bytearray((shop / "tiny-rust.gguf").read_bytes())
    data[7000] ^= 1
    (shop / "tiny-rust.gguf").write_bytes(data)
    with pytest.raises(nanochat.ChecksumError) as e:
        nanochat.load_model("tiny-rust", progress=False)
    assert e.value.code == 4
    assert not [e for e in nanochat.cache.list() if e.state == "cached"]


def test_offline(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(nanochat.OfflineError) as e:
        nanochat.load_model("tiny-rust", offline=True)
    assert isinstance(e.value, ConnectionError) and e.value.hint
    monkeypatch.setenv("NANOCHAT_OFFLINE", "1")
    with pytest.raises(nanochat.OfflineError):
        nanochat.download("tiny-rust")


def test_server_that_is_not_there(shop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = json.loads((tmp_path / "index.json").read_text())
    index["models"][0]["urls"] = [re.sub(r"\d+/", "1/", index["models"][0]["urls"][0])]
    (tmp_path / "index.json").write_text(json.dumps(index))
    timer = threading.Timer(0.5, lambda: None)
    timer.start()
    with pytest.raises(nanochat.NetworkError):
        nanochat.load_model("tiny-rust", progress=False)


def test_planned(shop: Path) -> None:
    for call in (nanochat.load_model, nanochat.download):
        with pytest.raises(nanochat.ModelNotPublishedError, match="use tiny-rust") as e:
            call("big-rust")  # type: ignore[operator]
        assert isinstance(e.value, nanochat.ModelNotFoundError) and e.value.code == 18


def test_name_that_nothing_has(shop: Path) -> None:
    with pytest.raises(nanochat.ModelNotFoundError) as e:
        nanochat.load_model("tiny-rst")
    text = str(e.value)
    assert text.splitlines()[0] == 'no model "tiny-rst"'
    assert "did you mean: tiny-rust" in text
    assert "searched: zoo index 2026-11 (2 models), ./tiny-rst, " in text and "cache" in text
    assert "nanochat list" in text
    assert e.value.near == ("tiny-rust",) and e.value.name == "tiny-rst"
    with pytest.raises(nanochat.ModelNotFoundError, match="tiny-rust@7"):
        nanochat.load_model("tiny-rust", revision="8")
    with pytest.raises(nanochat.InvalidArgumentError, match="disagree"):
        nanochat.load_model("tiny-rust@7", revision="8")
    with pytest.raises(nanochat.NanochatError):
        nanochat.load_model("../..")


def test_settings(shop: Path, tmp_path: Path) -> None:
    s = nanochat.settings
    assert s["cache"] == str(tmp_path / "cache")
    s["cache"] = tmp_path / "third"
    s["offline"] = True
    try:
        assert s["cache"] == str(tmp_path / "third") and s["offline"] == "1" and "offline=1" in repr(s)
        assert nanochat.cache.directory == tmp_path / "third"
        with pytest.raises(nanochat.OfflineError):
            nanochat.load_model("tiny-rust", isolate=True)  # settings hold in its process too
    finally:
        del s["cache"], s["offline"]
    assert s["cache"] == str(tmp_path / "cache")
    with pytest.raises(KeyError):
        s["colour"]
    with pytest.raises(nanochat.InvalidArgumentError):
        s["offline"] = "perhaps"
    s["token"] = "secret"
    assert "secret" not in repr(s)
    del s["token"]


class Terminal:
    """A standard error that says it is a terminal, or not."""

    def __init__(self, tty: bool) -> None:
        self.text, self.tty = "", tty

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("tty", [True, False])
def test_progress_in_words(tty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanochat._display import Bar

    err = Terminal(tty)
    monkeypatch.setattr("sys.stderr", err)
    bar = Bar()
    for done in range(0, 1001, 5):
        bar(nanochat.Progress("m", "downloading", done * 1000, 10**6, done / 100))
    bar(nanochat.Progress("m", "done", 10**6, 10**6, 10.0))
    if tty:
        assert "█" in err.text and err.text.endswith("\n") and err.text.count("\n") == 1
    else:
        assert err.text.count("\n") == 12 and "m: downloading 500 kB of 1 MB, 100 kB/s" in err.text
    monkeypatch.setenv("NANOCHAT_NO_PROGRESS", "1")
    from nanochat._display import reporter

    assert reporter(True) is None and reporter(False) is None
