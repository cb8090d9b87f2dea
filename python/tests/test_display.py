"""What a notebook and a terminal are shown."""

from __future__ import annotations

import re
import signal
import sys
import threading
import types
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import nanochat
import pytest
from nanochat import _chart, _display, _html

EVIL = "<script>alert('1')</script><img src=x onerror=\"y\">&amp;"


class Checked(HTMLParser):
    """Collects text, and fails on tags and attributes that are not ours, and on tags that are not closed."""

    void = ("line", "circle", "polyline", "rect", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open = "", list[str]()
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in "div pre span b table thead tbody tr th td svg polyline circle a".split(), tag
        assert {k for k, _ in attrs} <= set("style href width height points fill stroke stroke-width cx cy r".split())
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.void

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def done(text: str, prompt: str | None = None) -> nanochat.Completion:
    usage = nanochat.Usage(completion_tokens=11, decode_seconds=0.1)
    return nanochat.Completion(text, list(range(11)), "length", usage, 7, prompt=prompt)


@pytest.mark.parametrize(
    "text",
    [
        EVIL,
        f"fn main() {{ // {EVIL}\n    println!(\"{EVIL}\"); let c = '\\''; }}",
        f"/* {EVIL}",
        f'"{EVIL}',
        "struct A<'a>(&'a str, i32); 0x1f 1.5e3 # x\n#[derive(Debug)]",
        "",
    ],
)
def test_no_text_is_html(text: str) -> None:
    seen = Checked(done(text, EVIL)._repr_html_())
    assert EVIL + text in seen.text
    assert "11 tokens · 100 tok/s · length · seed 7" in seen.text
    assert text in Checked(_html.partial(EVIL, text)).text
    assert text in Checked(_html.code(text)).text


def test_colours() -> None:
    html = _html.code('fn name(x: &\'a u32) -> bool { // note\n    vec![1, 2]; "s" }')
    words = dict(re.findall(r'<span style="color:var\(--jp-mirror-editor-(\w+)-color,#\w+\)">([^<]*)</span>', html))
    assert words["keyword"] == "fn" and words["comment"] == "// note" and words["string"] == "&quot;s&quot;"
    assert "vec!" in html and words["number"] == "2"


def test_model_and_zoo(model: nanochat.Model) -> None:
    seen = Checked(model._repr_html_())
    for part in ("bits per weight", "128 tokens", "SHA-256", model.info.sha256[:12], model.info.kernel):
        assert part in seen.text
    model.close()
    assert "closed" in Checked(model._repr_html_()).text
    entry = nanochat.ZooEntry(EVIL, EVIL, "planned", 0, "", EVIL, EVIL, None, None)
    assert Checked(_html.zoo([entry])).text.count(EVIL) == 3


class Notebook:
    """What IPython would be in a notebook: it keeps what is shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.outputs = 0

    def display(self, thing: Any, display_id: bool = False) -> Notebook:
        assert display_id
        self.outputs += 1
        self.update(thing)
        return self

    def update(self, thing: Any) -> None:
        self.shown.append(thing._repr_html_())


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    page = Notebook()
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=True)  # type: ignore[attr-defined]
    display.display = page.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    yield page


def test_show_in_a_notebook(notebook: Notebook, model: nanochat.Model) -> None:
    assert _display.in_notebook()
    want = model.generate("fn", max_tokens=90, ignore_end=True)
    got = model.stream("fn", max_tokens=90, ignore_end=True).show()
    assert got.text == want.text
    assert notebook.outputs == 1 and 2 <= len(notebook.shown) <= 90
    for html in notebook.shown:
        Checked(html)
    assert "90 tokens" in notebook.shown[-1]


def test_show_is_renewed_15_times_a_second(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    live = _display.Live(15.0)
    for _ in range(1000):
        live.update(lambda: "<b>x</b>", "x")
        now[0] += 0.001
    assert 14 <= len(notebook.shown) <= 16


def test_show_without_a_notebook(model: nanochat.Model, capsys: pytest.CaptureFixture[str]) -> None:
    got = model.stream("fn", max_tokens=30).show()
    assert capsys.readouterr().out.rstrip("\n") == got.text.rstrip("\n")


def test_interrupt_keeps_what_came(model: nanochat.Model, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stream = model.stream("fn", max_tokens=None, ignore_end=True)
        for _ in range(5):
            next(stream)
        timer = threading.Timer(0, signal.raise_signal, [signal.SIGINT])
        stream._source.read = slow(stream._source.read, timer)  # type: ignore[method-assign]
        got = stream.show()
        timer.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert got.finish_reason == "cancelled" and len(got.tokens) >= 5
    assert model.generate("x", max_tokens=3).tokens


def slow(read: Any, timer: threading.Timer) -> Any:
    """A read during which the user presses a key."""

    def wrapped(*args: Any) -> Any:
        timer.start()
        timer.join()
        return read(*args)

    return wrapped


def test_bar_in_a_notebook(notebook: Notebook) -> None:
    bar = _display.Bar()
    bar(nanochat.Progress(EVIL, "downloading", 5, 10, 1.0))
    bar(nanochat.Progress(EVIL, "done", 10, 10, 2.0))
    assert notebook.outputs == 1
    for html in notebook.shown:
        assert EVIL in Checked(html).text


def test_charts() -> None:
    nan = float("nan")
    line = _chart.Line("<a>", "#123456", [(i, nan if i == 5 else i**0.5) for i in range(2000)])
    empty, one, flat = (_chart.Line("x", "red", p) for p in ([], [(1, 2.0)], [(1, 3.0), (2, 3.0)]))
    chart = _chart.chart(
        [_chart.Panel("<t>", [line, one]), _chart.Panel("none", [empty]), _chart.Panel("flat", [flat])]
    )
    root = ET.fromstring(chart.svg)
    assert root.tag.endswith("svg")
    texts = [t.text for t in root.iter() if t.tag.endswith("text")]
    assert {"<t>", "<a>", "no data", "flat", "40"} <= set(texts)
    assert all("nan" not in str(v) for e in root.iter() for v in e.attrib.values())
    assert chart._repr_svg_() == chart.svg and len(chart.svg) < 40000
    assert _chart.sparkline([1.0]) == "" and "<svg" in _chart.sparkline([1.0, nan, 2.0])


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [(0, 10, [0, 2.5, 5, 7.5, 10]), (0.13, 0.17, [0.13, 0.14, 0.15, 0.16, 0.17]), (3, 3, [3])],
)
def test_ticks(low: float, high: float, want: list[float]) -> None:
    assert _chart.ticks(low, high, 4) == pytest.approx(want)


@pytest.mark.parametrize(
    ("value", "want"), [(0, "0"), (0.012, "0.012"), (2.5, "2.5"), (1200, "1200"), (3.2e-7, "3.2e-7"), (5e7, "5e7")]
)
def test_numbers(value: float, want: str) -> None:
    assert _chart.number(value) == want
