"""What models, streams and completions promise."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import pickle
import subprocess
import threading
from pathlib import Path
from typing import Any

import nanochat
import pytest
from conftest import COMMAND


def command(small: str, prompt: str, *arguments: str) -> dict[str, Any]:
    """What the command prints as JSON."""
    out = subprocess.run([COMMAND, "generate", small, prompt, "--json", *arguments], check=True, capture_output=True)
    return dict(json.loads(out.stdout))


@pytest.mark.parametrize("prompt", ["fn main() {", "größe\x01 \U0001f980", "x"])
@pytest.mark.parametrize("seed", [0, 5, 2**64 - 1])
def test_text_is_that_of_the_command(model: nanochat.Model, small: str, prompt: str, seed: int) -> None:
    want = command(small, prompt, "-n", "40", "-t", "1.2", "--seed", str(seed))
    got = model.generate(prompt, max_tokens=40, temperature=1.2, seed=seed)
    assert (got.text, got.tokens, got.finish_reason) == (want["text"], want["tokens"], want["finish_reason"])
    assert got.usage.prompt_tokens == want["usage"]["prompt_tokens"]
    assert str(got) == got.text


def test_defaults_are_those_of_the_command(model: nanochat.Model, small: str) -> None:
    assert model.generate("fn").text == command(small, "fn")["text"]


def test_options(model: nanochat.Model, small: str) -> None:
    o = nanochat.GenOptions(
        max_tokens=30, temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, repeat_penalty=1.1, presence_penalty=0.1,
        frequency_penalty=0.2, penalty_window=16, seed=3, ignore_end=True, logprobs=2,
        logit_bias={5: -math.inf, 9: 1.5},
    )  # fmt: skip
    want = command(
        small, "fn", "-n", "30", "-t", "0.9", "-k", "40", "-p", "0.9", "--min-p", "0.01", "--repeat-penalty", "1.1",
        "--presence-penalty", "0.1", "--frequency-penalty", "0.2", "--penalty-window", "16", "--seed", "3",
        "--ignore-end", "--logprobs", "2", "--logit-bias", "5=-inf", "--logit-bias", "9=1.5",
    )  # fmt: skip
    got = model.generate("fn", **o)
    assert got.tokens == want["tokens"]
    assert got.logprobs == pytest.approx([x["logprob"] for x in want["logprobs"]], abs=1e-6)
    with model.stream("fn", **o) as stream:
        tops = [t.top for t in stream if t.id >= 0]
    assert [[i for i, _ in top] for top in tops] == [[x["id"] for x in w["top"]] for w in want["logprobs"]]


def test_stop(model: nanochat.Model) -> None:
    whole = model.generate("x", max_tokens=60, temperature=1, seed=2, ignore_end=True)
    word = whole.text.split()[4]
    for stop in (word, [word, "never"]):
        got = model.generate("x", max_tokens=60, temperature=1, seed=2, ignore_end=True, stop=stop)
        assert got.finish_reason == "stop"
        assert got.text == whole.text[: whole.text.index(word)]


def test_stream_gives_the_pieces_of_the_completion(model: nanochat.Model) -> None:
    with model.stream("fn", max_tokens=50, temperature=1.3, seed=4, ignore_end=True) as stream:
        pieces = list(stream)
        done = stream.completion
    assert "".join(pieces) == done.text
    assert [p.id for p in pieces if p.id >= 0] == done.tokens
    assert len(done.tokens) == 50
    assert done.finish_reason == "length"
    assert done.usage.completion_tokens == 50
    assert done.usage.decode_seconds > 0


def test_batch_is_each_alone(model: nanochat.Model) -> None:
    prompts = [f"fn f{i}(" for i in range(12)]
    together = model.generate(prompts, max_tokens=70, temperature=1, seed=1)
    alone = [model.generate(p, max_tokens=70, temperature=1, seed=1) for p in prompts]
    assert [x.text for x in together] == [x.text for x in alone]
    assert model.generate([]) == []


def test_tokens_round_trip(model: nanochat.Model) -> None:
    text = "fn größe(\0) { \U0001f980 }" * 100
    assert model.detokenize(model.tokenize(text)) == text
    assert model.tokenize("") == model.tokenize("")[:1]
    assert model.detokenize([]) == ""
    assert model.detokenize(iter(model.tokenize("ab"))) == "ab"


def test_info(model: nanochat.Model, small: str) -> None:
    assert model.info.path == small
    assert model.info.context == 128
    assert model.info.vocab_size == 300
    assert model.info.threads == 1
    assert model.info.config["dim"] == 64
    assert model.info.params["total"] > 0
    assert "small.gguf" in repr(model) and "context 128" in repr(model)
    assert model.info.kernel in nanochat.system_info()["kernels"]


def test_load_options(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with nanochat.load_model(Path(small), context=64, threads=2, kernel="go", huge_pages=False, kv_int8=True) as m:
        assert (m.info.context, m.info.threads, m.info.kernel) == (64, 2, "go")
        assert m.generate("x", max_tokens=None, ignore_end=True).usage.completion_tokens > 40
    monkeypatch.setenv("NANOCHAT_KERNEL", "go")
    monkeypatch.setenv("NANOCHAT_THREADS", "1")
    with nanochat.load_model(small) as m:
        assert (m.info.kernel, m.info.threads) == ("go", 1)


@pytest.mark.parametrize(
    ("options", "error", "part"),
    [
        ({"max_token": 3}, TypeError, "max_tokens"),
        ({"colour": 3}, TypeError, "temperature"),
        ({"max_tokens": 0}, nanochat.InvalidArgumentError, "max_tokens"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens"),
        ({"top_p": 7}, nanochat.InvalidArgumentError, "top_p"),
        ({"temperature": math.nan}, ValueError, "temperature"),
        ({"seed": -1}, nanochat.InvalidArgumentError, "seed"),
        ({"stop": ""}, nanochat.InvalidArgumentError, "stops"),
        ({"stop": ["x"] * 17}, nanochat.InvalidArgumentError, "16"),
        ({"logit_bias": {300: 1.0}}, nanochat.InvalidArgumentError, "300"),
    ],
)
def test_wrong_options(model: nanochat.Model, options: dict[str, Any], error: type[Exception], part: str) -> None:
    with pytest.raises(error, match=part):
        model.generate("x", **options)


def test_errors(model: nanochat.Model, small: str, tmp_path: Path) -> None:
    with pytest.raises(nanochat.ModelNotFoundError, match="smal") as e:
        nanochat.load_model(small.replace("small", "smal"))
    assert isinstance(e.value, FileNotFoundError)
    assert "did you mean" in str(e.value)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(nanochat.ModelFormatError, match="bad") as f:
        nanochat.load_model(tmp_path / "bad.gguf")
    assert f.value.code == 3 and f.value.hint
    with pytest.raises(nanochat.ContextOverflowError, match="128"):
        model.generate("a" * 500)
    with pytest.raises(nanochat.InvalidArgumentError, match="abacus"):
        nanochat.load_model(small, kernel="abacus")
    with pytest.raises(nanochat.InvalidArgumentError):
        nanochat.load_model(small, threads=-1)
    with pytest.raises(nanochat.InvalidArgumentError):
        nanochat.load_model("a\0b")
    with pytest.raises(nanochat.InvalidArgumentError, match="300"):
        model.detokenize([300])


def test_close(small: str) -> None:
    m = nanochat.load_model(small, threads=1)
    stream = m.stream("x", max_tokens=20, ignore_end=True)
    m.close()
    m.close()
    assert m.closed and "closed" in repr(m)
    for call in (lambda: m.generate("x"), lambda: m.tokenize("x"), lambda: m.detokenize([1])):
        with pytest.raises(nanochat.ClosedError):
            call()
    assert sum(t.id >= 0 for t in stream) == 20
    stream.close()
    stream.close()
    assert list(stream) == []
    other = nanochat.load_model(small, threads=1).stream("x")  # the model is kept as long as its stream
    gc.collect()
    next(other)
    other.close()
    with pytest.raises(nanochat.ClosedError):
        next(other)


def test_cancel_from_another_thread(model: nanochat.Model) -> None:
    for i in range(20):
        stream = model.stream("x", max_tokens=None, ignore_end=True)
        thread = threading.Timer(i / 4000, stream.cancel)
        thread.start()
        try:
            for _ in stream:
                pass
            assert stream.completion.finish_reason == "length"  # it was quicker
        except nanochat.CancelledError:
            assert stream.completion.finish_reason == "cancelled"
        thread.join()
        stream.close()


def test_threads_share_a_model(model: nanochat.Model) -> None:
    want = [model.generate("fn", temperature=1, seed=s, max_tokens=30).text for s in range(8)]
    got = [""] * 8

    def work(s: int) -> None:
        got[s] = model.generate("fn", temperature=1, seed=s, max_tokens=30).text

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == want


def test_async(model: nanochat.Model) -> None:
    async def read(seed: int) -> str:
        return "".join([t async for t in model.astream("fn", temperature=1, seed=seed, max_tokens=30)])

    async def run() -> list[str]:
        return list(await asyncio.gather(*(read(s) for s in range(4))))

    assert asyncio.run(run()) == [model.generate("fn", temperature=1, seed=s, max_tokens=30).text for s in range(4)]


def test_async_stops_early(model: nanochat.Model) -> None:
    async def run() -> int:
        count = 0
        stream = model.astream("fn", max_tokens=None, ignore_end=True)
        async for _ in stream:
            count += 1
            if count == 3:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return count

    assert asyncio.run(run()) == 3


def test_pickle(model: nanochat.Model) -> None:
    with pickle.loads(pickle.dumps(model)) as copy:
        assert copy.info == model.info
        assert copy.generate("x", max_tokens=9).text == model.generate("x", max_tokens=9).text
    error = nanochat.ContextOverflowError("too long", hint="shorten it")
    same = pickle.loads(pickle.dumps(error))
    assert (type(same), same.message, same.hint) == (type(error), error.message, error.hint)
    with pytest.raises(TypeError):
        pickle.dumps(model.stream("x"))
