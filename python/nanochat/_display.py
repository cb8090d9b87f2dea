"""Things that change while one looks: in a notebook by renewing one output, on a terminal by writing over a line,
elsewhere by few lines. Without widgets and without JavaScript."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from nanochat import _html
from nanochat._types import Progress


def in_notebook() -> bool:
    """Whether output goes to a notebook: IPython with a kernel. Loads nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class HTML:
    """Something whose form in a notebook is this HTML."""

    def __init__(self, html: str, text: str = "") -> None:
        self._html, self._text = html, text

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return self._text


class Output:
    """One output of a notebook's cell that is renewed."""

    def __init__(self) -> None:
        self._handle: Any = None

    def put(self, html: str, text: str) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        show: Callable[..., Any] = display
        if self._handle is None:
            self._handle = show(HTML(html, text), display_id=True)
        else:
            self._handle.update(HTML(html, text))


class Live:
    """Text that grows, at most rate times a second in a notebook; elsewhere on standard output."""

    def __init__(self, rate: float) -> None:
        self._every, self._next = 1.0 / rate, 0.0
        self._output = Output() if in_notebook() else None

    def update(self, html: Callable[[], str], more: str) -> None:
        """Shows html, or writes what is new."""
        if self._output is None:
            sys.stdout.write(more)
            sys.stdout.flush()
        elif (now := time.monotonic()) >= self._next:
            self._next = now + self._every
            self._output.put(html(), "")

    def end(self, html: Callable[[], str], more: str) -> None:
        if self._output is None:
            sys.stdout.write(more)
            sys.stdout.flush()
        else:
            self._output.put(html(), "")


def size(n: float) -> str:
    """A size with three digits: "45.2 MB"."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= one:
            return f"{n / one:.3g} {unit}"
    return f"{n:.0f} B"


def duration(seconds: float) -> str:
    """A time: "9 s", "3 min 20 s", "2 h 5 min"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"


class Bar:
    """Shows Progress: a bar in a notebook and on a terminal, elsewhere a line for every 10 %."""

    def __init__(self) -> None:
        self._output = Output() if in_notebook() else None
        self._tty = self._output is None and sys.stderr is not None and sys.stderr.isatty()
        self._next, self._tenth, self._width, self._begun = 0.0, -1, 0, False

    def __call__(self, p: Progress) -> None:
        if p.state == "done" and not self._begun:
            return  # there was nothing to wait for
        self._begun = True
        now, last = time.monotonic(), p.state == "done"
        if self._output is not None or self._tty:
            if not last and now < self._next:
                return
            self._next = now + 0.1
            line = describe(p)
            if self._output is not None:
                self._output.put(_html.bar(p.fraction, line), line)
                return
            room = shutil.get_terminal_size().columns - len(line) - 4
            if 8 <= room and p.total:
                full = round(p.fraction * min(room, 40))
                line = "█" * full + "░" * (min(room, 40) - full) + " " + line
            sys.stderr.write("\r" + line.ljust(self._width) + ("\n" if last else ""))
            sys.stderr.flush()
            self._width = len(line)
        elif (tenth := int(p.fraction * 10)) != self._tenth or last:
            self._tenth = tenth
            print(describe(p), file=sys.stderr, flush=True)


def describe(p: Progress) -> str:
    """One line: what, how far, how fast."""
    line = f"{p.name}: {p.state}"
    if p.state == "waiting":
        return line + " for another process"
    if p.total:
        line += f" {size(p.done)} of {size(p.total)}"
    elif p.done:
        line += f" {size(p.done)}"
    if p.state == "downloading" and p.seconds > 0.5 and p.done:
        line += f", {size(p.done / p.seconds)}/s"
    return line


def reporter(progress: bool | Callable[[Progress], None]) -> Callable[[Progress], None] | None:
    """What to tell the progress to; None for nobody."""
    if callable(progress):
        return progress
    if not progress or os.environ.get("NANOCHAT_NO_PROGRESS", "") not in ("", "0"):
        return None
    return Bar()
