"""Trainings in this process, and the server in another."""

from __future__ import annotations

import json
import math
import pickle
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import nanochat
import pytest
from nanochat import _train
from test_display import Checked, Notebook, notebook  # noqa: F401
from test_isolate import gone


def options(out: Path, **more: Any) -> dict[str, Any]:
    return {"train.out": out, "train.threads": 1, **{k.replace("__", "."): v for k, v in more.items()}}


def test_train(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = nanochat.train(recipe, overrides=options(tmp_path / "run"))
    assert [r.step for r in run.history] == list(range(1, 31))
    assert (run.state, run.step, run.steps) == ("finished", 30, 30)
    assert run.history[-1].loss < run.history[0].loss
    assert [r.step for r in run.history if r.val_bpb is not None] == [10, 20, 30]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [dict(r.raw) for r in run.history] == lines
    assert run.directory == tmp_path / "run" and run.model_path == tmp_path / "run" / "model.gguf"
    captured = capfd.readouterr()
    assert captured.out == "" and "step 30/30" in captured.err
    with nanochat.load_model(run.model_path, threads=1) as m:
        assert m.info.vocab_size == 320 and m.generate("pub fn", max_tokens=5).tokens
    assert "step 30 of 30" in Checked(run._repr_html_()).text and "finished" in repr(run)
    for title in ("loss, nats per token", "learning rate", "gradient norm", "entropy of the predictions"):
        assert title in run.plot().svg
    run.plot().save(tmp_path / "plot.svg")
    run.stop()  # nothing to stop
    assert run.state == "finished" and run.wait() is run
    with pytest.raises(TypeError):
        pickle.dumps(run)
    again = nanochat.train(recipe, overrides=options(tmp_path / "run"), progress=False)  # there is nothing to do
    assert again.history == [] and again.state == "finished"
    assert capfd.readouterr().err == ""


def test_stop_and_resume(recipe: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    o = options(tmp_path / "run", train__steps=3000, train__eval_every=0)
    run = nanochat.train(recipe, overrides=o, background=True, progress=lambda r: seen.append(r.step))
    with pytest.raises(TimeoutError, match="of 3000"):
        run.wait(timeout=0.3)
    while run.step < 5:
        time.sleep(0.01)
    assert run.state == "running" and run.directory == tmp_path / "run"
    run.stop()
    at = run.step
    assert run.state == "stopped" and 5 <= at < 3000 and run.wait() is run
    o["train.steps"] = at + 5
    more = nanochat.train(recipe, overrides=o, resume="auto", progress=False)
    assert [r.step for r in more.history] == list(range(at + 1, at + 6))
    assert seen and seen == sorted(seen)
    with pytest.raises(nanochat.NanochatError, match="holds a run"):
        nanochat.train(recipe, overrides=o, resume="none", progress=False)


def test_wrong_configurations(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(nanochat.InvalidArgumentError, match=r"train\.steps"):
        nanochat.train(recipe, overrides={"train.step": 3})
    with pytest.raises(nanochat.NotFoundError, match=r"none\.toml"):
        nanochat.train(tmp_path / "none.toml")
    with pytest.raises(nanochat.NotFoundError, match="manifest"):
        nanochat.train(recipe, overrides=options(tmp_path / "run", data__path=tmp_path), progress=False)


def test_divergence(recipe: Path, tmp_path: Path) -> None:
    o = options(
        tmp_path / "run", train__steps=400, anomaly__patience=1, anomaly__loss_sigma=1, schedule__shape="constant"
    )
    o |= {f"optim.{c}.lr": 10.0 for c in ("matrix", "embedding", "head", "scalar")}
    o["schedule.warmup"] = 300
    with pytest.raises(nanochat.TrainingDivergedError) as e:
        nanochat.train(recipe, overrides=o, progress=False)
    assert e.value.code == 16 and isinstance(e.value, ArithmeticError) and e.value.step
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (e.value.step, e.value.loss) == (last["step"], last["loss"])
    same = pickle.loads(pickle.dumps(e.value))
    assert same.step == e.value.step


class Job:
    """A training of the test's own."""

    def __init__(self, *records: dict[str, Any], error: nanochat.NanochatError | None = None) -> None:
        self.records, self.error, self.closed = list(records), error, False

    def read(self, wait: int) -> list[tuple[str, int]]:
        if self.records:
            record = self.records.pop(0)
            return [(json.dumps(record), int(record["type"] == "result"))]
        if self.error:
            raise self.error
        return [("", 1)]

    def cancel(self) -> None:
        self.error = nanochat.CancelledError("cancelled")

    def close(self) -> None:
        self.closed = True


def step(n: int, **more: Any) -> dict[str, Any]:
    return {"type": "step", "steps": 9, "left_s": 3.0, "out": "x", "step": n, "loss": 2.0, "entropy": 1.0, **more}


def test_collapse() -> None:
    event = {"kind": "collapse", "step": 1, "text": "<b>alike</b>"}
    job = Job(step(1, events=[event]), step(2, entropy=0.5, loss=None), error=nanochat.TrainingDivergedError("over"))
    run = _train.TrainingRun(job, None)
    with pytest.raises(nanochat.ModelCollapseError) as e:
        run.wait(5)
    assert (e.value.entropy, e.value.step) == (0.5, 2) and math.isnan(e.value.loss or 0)
    assert run.state == "failed" and job.closed
    assert "<b>alike</b>" in Checked(run._repr_html_()).text
    assert run.plot().svg


def test_records_of_other_kinds_are_no_fault() -> None:
    job = Job(
        {"type": "new"}, {"type": "dropped", "records": 4}, {"type": "log", "text": "hi"}, step(1), {"type": "result"}
    )
    run = _train.TrainingRun(job, None).wait(5)
    assert (run.dropped, run.log, run.step) == (4, ["hi"], 1)


def test_shown_in_a_notebook(notebook: Notebook, recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    o = options(tmp_path / "run", train__steps=400, train__eval_every=0)
    nanochat.train(recipe, overrides=o)
    assert notebook.outputs == 1 and len(notebook.shown) >= 2
    for html in notebook.shown:
        Checked(html)
    assert "step 400 of 400" in notebook.shown[-1] and "<svg" in notebook.shown[-1]


def test_dataframe() -> None:
    run = _train.TrainingRun(Job(step(1), step(2), {"type": "result"}), None).wait(5)
    if "pandas" not in sys.modules:
        try:
            import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore] # noqa: F401
        except ImportError:
            with pytest.raises(ImportError):
                run.to_dataframe()
            return
    assert list(run.to_dataframe().index) == [1, 2]


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.loads(answer.read()))


def test_serve(small: str, model: nanochat.Model) -> None:
    with nanochat.serve(small, parallel=2, args=["--threads", "1"]) as server:
        assert server.running and server.url.startswith("http://127.0.0.1:")
        (entry,) = ask(server.url + "/v1/models")["data"]
        body = {"model": entry["id"], "prompt": "fn", "max_tokens": 9, "temperature": 0}
        assert (
            ask(server.url + "/v1/completions", body)["choices"][0]["text"] == model.generate("fn", max_tokens=9).text
        )
        assert server.url in server._repr_html_() and server.url in repr(server)
    assert not server.running and "stopped" in repr(server) and server.stop() == 0
    with pytest.raises(urllib.error.URLError):
        ask(server.url + "/v1/models")


def test_server_ends_with_its_handle(small: str) -> None:
    server = nanochat.serve(small)
    pid = server.pid
    del server
    assert gone(pid)


def test_server_that_does_not_start(small: str) -> None:
    with pytest.raises(nanochat.ServerError, match="no-such-model") as e:
        nanochat.serve("no-such-model")
    assert "status" in str(e.value)
    with pytest.raises(nanochat.ServerError, match="--colour"):
        nanochat.serve(small, args=["--colour"])
