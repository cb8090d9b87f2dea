"""Training: a run, what it measured, and pictures of it."""

from __future__ import annotations

import atexit
import contextvars
import json
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat import _chart, _display, _html
from nanochat._context import Context
from nanochat._stream import SLICE
from nanochat.errors import (
    CancelledError,
    ModelCollapseError,
    ModelNotFoundError,
    NanochatError,
    NotFoundError,
    TrainingDivergedError,
)

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class StepRecord:
    """What a step measured. Losses are means over the targets of the step, in nats; NaN where one is not finite."""

    step: int
    tokens: int
    """All tokens up to the end of the step."""
    epoch: float
    loss: float
    """What is minimised; ce is its cross-entropy."""
    ce: float
    bpb: float
    """Cross-entropy in bits per byte of text."""
    entropy: float
    """Of the predictions."""
    lr: float
    grad_norm: float
    tokens_per_second: float
    skipped: bool
    """The step changed nothing, because something was not finite."""
    val_bpb: float | None
    """Bits per byte on the validation split, where the step was followed by an evaluation."""
    events: tuple[str, ...]
    """What a person who watches should know."""
    raw: Mapping[str, Any] = field(repr=False)
    """The line of metrics.jsonl, with all that it has."""

    @classmethod
    def _of(cls, raw: Mapping[str, Any]) -> Self:
        def number(key: str) -> float:
            value = raw.get(key)
            return math.nan if value is None else float(value)

        val = raw.get("val") or {}
        return cls(
            step=int(raw["step"]),
            tokens=int(raw.get("tokens", 0)),
            epoch=number("epoch"),
            loss=number("loss"),
            ce=number("ce"),
            bpb=number("bpb"),
            entropy=number("entropy"),
            lr=number("lr"),
            grad_norm=number("grad_norm"),
            tokens_per_second=number("tok_s"),
            skipped=bool(raw.get("skipped")),
            val_bpb=val.get("bpb"),
            events=tuple(str(e.get("text", "")) for e in raw.get("events") or ()),
            raw=raw,
        )


# Runs that have not ended, for the end of the program.
_running: weakref.WeakSet[TrainingRun] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for run in list(_running):
        run.stop(wait=True)


class TrainingRun(Context):
    """A training in the background of this process. train() makes it.

    In a notebook it is shown as its progress, and plot() as curves. It can be read while it runs.
    """

    def __init__(self, job: Any, report: Callable[[TrainingRun], None] | None) -> None:
        self.history: list[StepRecord] = []
        """One record for every step of this call, from the first one on; after a resume, from there on."""
        self.log: list[str] = []
        """Lines for people."""
        self.steps = 0
        """Steps of the whole run."""
        self.directory: Path | None = None
        """Where checkpoints, metrics.jsonl and the models are."""
        self.result: Mapping[str, Any] = {}
        """What the library says at the end."""
        self.dropped = 0
        """Records that were lost because nobody had time to read them; metrics.jsonl has them."""
        self.error: NanochatError | None = None
        self._job, self._report, self._left = job, report, 0.0
        self._done = threading.Event()
        self._stopped = False
        self._begin, self._end = time.monotonic(), 0.0
        context = contextvars.copy_context()  # a notebook knows by it which cell the output belongs to
        self._thread = threading.Thread(target=context.run, args=(self._follow,), name="nanochat-train", daemon=True)
        _running.add(self)
        self._thread.start()

    def _follow(self) -> None:
        try:
            finish = 0
            while not finish:
                for text, finish in self._job.read(SLICE * 4):
                    if text:
                        self._take(json.loads(text), bool(finish))
                self._tell(False)
        except NanochatError as e:
            self.error = self._diagnose(e)
        finally:
            self._end = time.monotonic()
            self._job.close()
            _running.discard(self)
            self._done.set()
            self._tell(True)

    def _tell(self, last: bool) -> None:
        if self._report is None:
            return
        try:
            self._report(self)
        except Exception:  # a reader that went away must not end a training
            self._report = None

    def _take(self, record: dict[str, Any], last: bool) -> None:
        kind = record.get("type")
        if last or kind == "result":
            self.result = record
            self.directory = Path(record["out"]) if record.get("out") else self.directory
        elif kind == "step":
            self.steps, self._left = int(record.get("steps", 0)), float(record.get("left_s") or 0)
            self.directory = Path(record["out"]) if record.get("out") else self.directory
            hidden = ("type", "steps", "left_s", "out")
            self.history.append(StepRecord._of({k: v for k, v in record.items() if k not in hidden}))
        elif kind == "log":
            self.log.append(str(record.get("text", "")))
        elif kind == "dropped":
            self.dropped += int(record.get("records", 0))

    def _diagnose(self, e: NanochatError) -> NanochatError:
        """The error of a training that diverged, with the numbers of its last step."""
        if not isinstance(e, TrainingDivergedError) or not self.history:
            return said(e)
        last = self.history[-1]
        kinds = {ev.get("kind") for r in self.history[-50:] for ev in r.raw.get("events") or ()}
        if "collapse" in kinds or last.entropy < 0.01:
            collapse = ModelCollapseError(e.message, hint=e.hint)
            collapse.entropy = last.entropy
            e = collapse
        e.step, e.loss = last.step, last.loss
        return e

    @property
    def step(self) -> int:
        """The last step."""
        return self.history[-1].step if self.history else int(self.result.get("steps") or 0)

    @property
    def state(self) -> str:
        """ "running", "stopping", "stopped", "finished" or "failed"."""
        if not self._done.is_set():
            return "stopping" if self._stopped else "running"
        if self.error is not None and not isinstance(self.error, CancelledError):
            return "failed"
        return "stopped" if self._stopped and self.step < self.steps else "finished"

    @property
    def model_path(self) -> Path | None:
        """The model file of a run that has finished."""
        return Path(self.result["model"]) if self.result.get("model") else None

    def wait(self, timeout: float | None = None) -> Self:
        """Waits for the end, or so many seconds (TimeoutError). Raises what the training failed with. An interrupt
        ends the waiting, not the training."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._done.wait(0.05 if end is None else max(0.0, min(0.05, end - time.monotonic()))):
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"the training is at step {self.step} of {self.steps} after {timeout} s")
        if self.error is not None and not (self._stopped and isinstance(self.error, CancelledError)):
            raise self.error
        return self

    def stop(self, *, wait: bool = True) -> None:
        """Saves a checkpoint and ends the training; train() with the same configuration goes on from there. wait:
        until it is saved."""
        self._stopped = True
        self._job.cancel()
        while wait and not self._done.wait(0.05):
            pass

    def plot(self, width: int = 860) -> _chart.Chart:
        """Curves of loss, learning rate, gradient norm and entropy, as SVG."""
        h = list(self.history)

        def line(label: str, colour: str, key: str) -> _chart.Line:
            return _chart.Line(label, colour, [(r.step, getattr(r, key)) for r in h])

        val = [(r.step, float(r.raw["val"]["nats"])) for r in h if (r.raw.get("val") or {}).get("nats") is not None]
        return _chart.chart(
            [
                _chart.Panel(
                    "loss, nats per token",
                    [line("training", "#c2601a", "loss"), _chart.Line("validation", "#2a6f97", val, dots=True)],
                ),
                _chart.Panel("learning rate", [line("", "#2f7d4f", "lr")]),
                _chart.Panel("gradient norm", [line("", "#8a3ab9", "grad_norm")]),
                _chart.Panel("entropy of the predictions, nats", [line("", "#1f6fb2", "entropy")]),
            ],
            width,
        )

    def to_dataframe(self) -> Any:
        """The history as a pandas DataFrame with the step as index. Needs pandas."""
        import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]

        names = [n for n in StepRecord.__dataclass_fields__ if n not in ("raw", "events")]
        rows = [{n: getattr(r, n) for n in names} for r in self.history]
        return pandas.DataFrame(rows, columns=names).set_index("step")

    def describe(self) -> str:
        """One line: how far, how good, how fast."""
        if not self.history:
            return f"{self.state}: no step yet"
        r = self.history[-1]
        parts = [f"step {r.step} of {self.steps}", f"loss {r.loss:.4f}", f"{r.bpb:.4f} bits per byte"]
        if (val := next((h.val_bpb for h in reversed(self.history) if h.val_bpb is not None), None)) is not None:
            parts.append(f"validation {val:.4f}")
        parts.append(f"gradient {r.grad_norm:.3g}")
        if not self._done.is_set():
            parts += [f"{r.tokens_per_second:,.0f} tok/s", f"{_display.duration(self._left)} left"]
        else:
            parts.append(f"{self.state} after {_display.duration(self._end - self._begin)}")
        return " · ".join(parts)

    def _leave(self) -> None:
        self.stop()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a training cannot be pickled; pickle its history")

    def __repr__(self) -> str:
        return f"<TrainingRun: {self.describe()}>"

    def _repr_html_(self) -> str:
        """Progress with a curve of the loss."""
        h = self.history
        fraction = self.step / self.steps if self.steps else 0.0
        out = [_html.bar(min(fraction, 1.0), self.describe())]
        if curve := _chart.sparkline([r.loss for r in h], 300, 44):
            out.append(f"<div>loss {curve} {_chart.number(h[-1].loss)}</div>")
        warnings = [w for r in h for w in r.events][-3:]
        out += [f'<div style="color:#b3261e">{escape(w)}</div>' for w in warnings]
        if self.error is not None:
            out.append(f'<div style="color:#b3261e">{escape(self.error.message)}</div>')
        return f'<div style="text-align:left">{"".join(out)}</div>'


class _Report:
    """Shows a run: in a notebook as HTML that is renewed 4 times a second, on a terminal as a line that is
    written over, elsewhere as the lines of its log."""

    def __init__(self) -> None:
        self._output = _display.Output() if _display.in_notebook() else None
        self._tty = sys.stderr is not None and sys.stderr.isatty()
        self._next, self._lines, self._width, self._over = 0.0, 0, 0, False

    def __call__(self, run: TrainingRun) -> None:
        now, last = time.monotonic(), run._done.is_set()
        if self._over or (not last and now < self._next):
            return
        self._over, self._next = last, now + 0.25
        if self._output is not None:
            self._output.put(run._repr_html_(), run.describe())
        elif self._tty:
            line = run.describe()
            sys.stderr.write("\r" + line.ljust(self._width) + ("\n" if last else ""))
            sys.stderr.flush()
            self._width = len(line)
        else:
            lines, self._lines = run.log[self._lines :], len(run.log)
            for line in lines:
                print(line, file=sys.stderr, flush=True)


def train(
    config: str | os.PathLike[str],
    *,
    resume: str | os.PathLike[str] = "auto",
    overrides: Mapping[str, Any] | None = None,
    background: bool = False,
    progress: bool | Callable[[TrainingRun], None] = True,
) -> TrainingRun:
    """Trains a model as a configuration file (TOML) says; docs/TRAINING.md explains it.

    resume: "auto" goes on from the newest checkpoint in the run's directory, if there is one; "none" does not; else the
    path of a checkpoint. overrides: keys that replace those of the file, as {"train.steps": 200}. background: return
    at once. progress: True shows it, a function is called with the run about 5 times a second, False is silent.

    In the foreground, Ctrl-C raises KeyboardInterrupt at once while a checkpoint is saved; the end of the program waits
    for that. A training that diverges raises TrainingDivergedError.
    """
    from nanochat._native import Native

    sets = [f"{key}={_toml(value)}" for key, value in (overrides or {}).items()]
    if callable(progress):
        report: Callable[[TrainingRun], None] | None = progress
    else:
        report = _Report() if _display.reporter(progress) is not None else None
    shown = report if background else None
    for other in list(_running):  # it may be saving a checkpoint that this one goes on from
        while other._stopped and not other._done.wait(0.05):
            pass
    try:
        job = Native().train(os.fsdecode(os.fspath(config)), sets, os.fsdecode(os.fspath(resume)))
    except NanochatError as e:
        raise said(e) from None
    run = TrainingRun(job, shown)
    if background:
        return run
    try:  # shown by this thread: a notebook takes its output for that of the cell
        while not run._done.wait(0.1):
            if report is not None:
                report(run)
        if report is not None:
            report(run)
        return run.wait()
    except BaseException:
        run.stop(wait=False)
        raise


def said(e: NanochatError) -> NanochatError:
    """What a training says about files it does not find: they are no models."""
    return NotFoundError(e.message, hint=e.hint) if type(e) is ModelNotFoundError else e


def _toml(value: Any) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | os.PathLike):
        return json.dumps(os.fsdecode(os.fspath(value)), ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return str(value)
