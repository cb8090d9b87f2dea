"""Chats, sessions, scores, fill in the middle, times, names: what goes beyond text from text."""

from __future__ import annotations

import array
import math
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import nanochat
import pytest
from conftest import ROOT

SHIPPED = ROOT / "models" / "nano-5m-rust" / "nano-5m-rust.gguf"


@pytest.fixture(scope="module")
def rust() -> Any:
    """The model that comes with the package, by its name."""
    with nanochat.load_model("nano-5m-rust", threads=1) as m:
        yield m


def test_logprobs_are_those_of_logits(model: nanochat.Model) -> None:
    text = "fn größe() {}"
    ids = model.tokenize(text)
    rows = model.logits(text)
    assert rows.shape == (len(ids), 300) and rows.dtype == "float32"
    want = [float(r[i] - max(r) - math.log(sum(math.exp(v - max(r)) for v in r))) for r, i in zip(rows, ids[1:])]  # noqa: B905
    assert model.logprobs(text) == pytest.approx(want, abs=1e-4)
    assert model.logprobs(ids) == model.logprobs(text)
    assert (model.logits(ids) == rows).all()
    nxt = model.generate(text, max_tokens=1).tokens[0]
    assert int(rows[-1].argmax()) == nxt


def test_scores_without_numpy(model: nanochat.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    want = model.logits("fn").tolist()
    monkeypatch.setitem(sys.modules, "numpy", None)
    rows = model.logits("fn")
    assert isinstance(rows, memoryview) and rows.shape == (len(want), 300) and rows.tolist() == want
    assert isinstance(array.array("f", model.embed("fn").tolist()), array.array)


def test_embed(model: nanochat.Model) -> None:
    one, two = model.embed("fn a"), model.embed(["fn a", "struct B"])
    assert one.shape == (64,) and two.shape == (2, 64)
    assert (two[0] == one).all() and not (two[1] == one).all()
    assert model.embed([]).shape == (0, 0)


def test_session_continues(model: nanochat.Model) -> None:
    with model.session() as s:
        first = s.generate("fn a(", max_tokens=5, ignore_end=True)
        assert len(s) == first.usage.prompt_tokens + 5
        before = s.text
        assert before == "fn a(" + first.text
        second = s.generate(") {", max_tokens=5, ignore_end=True)
        alone = model.generate(before + ") {", max_tokens=5, ignore_end=True)
        if model.tokenize(before + ") {") == s.tokens[: len(s) - 5]:  # the cut may fall within a token
            assert second.tokens == alone.tokens
        assert second.usage.cached_tokens > 0
        s.truncate(3)
        assert len(s) == 3 and "3 tokens" in repr(s)
        with s.stream("x", max_tokens=110, ignore_end=True) as stream:
            next(stream)
            with pytest.raises(nanochat.BusyError):
                s.generate("y")
        s.generate("y", max_tokens=1)
    assert "closed" in repr(s)
    for call in (lambda: s.generate("x"), lambda: s.tokens):
        with pytest.raises(nanochat.ClosedError):
            call()
    with pytest.raises(TypeError):
        pickle.dumps(s)


def test_chat(model: nanochat.Model) -> None:
    messages: list[nanochat.Message] = [{"role": "user", "content": "fn a"}]
    want = model.chat(messages, max_tokens=8, seed=3, temperature=1.0)
    assert model.chat("fn a", max_tokens=8, seed=3, temperature=1.0).tokens == want.tokens
    with model.chat(messages, stream=True, max_tokens=8, seed=3, temperature=1.0) as stream:
        assert "".join(stream) == want.text
    ids = model.chat_tokens(messages)
    assert want.usage.prompt_tokens == len(ids)
    assert "fn a" in model.detokenize(ids)
    assert "chatml" in nanochat.system_info()["templates"]
    with pytest.raises(nanochat.UnsupportedError, match="chatml") as e:
        model.chat_tokens(messages, template="chatml")
    assert isinstance(e.value, NotImplementedError) and e.value.code == 14
    for wrong in ([{"role": "user"}], [{"role": "user", "content": 3}], ["x"]):
        with pytest.raises(nanochat.InvalidArgumentError, match="message 0"):
            model.chat(wrong)  # type: ignore[call-overload]
    with pytest.raises(nanochat.NanochatError, match="abacus"):
        model.chat(messages, template="abacus")
    with pytest.raises(nanochat.NanochatError, match="poet"):
        model.chat([{"role": "poet", "content": "x"}])


def test_chat_of_a_session_remembers(model: nanochat.Model) -> None:
    with model.session() as s:
        first = s.chat("fn a", max_tokens=6)
        assert s.messages == [
            {"role": "user", "content": "fn a"},
            {"role": "assistant", "content": first.text},
        ]
        with s.chat("more", stream=True, max_tokens=6) as stream:
            text = "".join(stream)
        assert [m["role"] for m in s.messages] == ["user", "assistant"] * 2
        assert s.messages[-1]["content"] == text
        assert text == model.chat(s.messages[:3], max_tokens=6).text


def test_fill_in_the_middle(rust: nanochat.Model, model: nanochat.Model) -> None:
    done = rust.complete("fn add(a: i32, b: i32) -> i32 {\n", "\n}\n", max_tokens=20)
    assert done.tokens and done.prompt
    with rust.fim("fn f() {", "}", stream=True, max_tokens=3) as stream:
        assert list(stream)
    assert model.info.fim
    assert model.complete("fn", "}", max_tokens=4).tokens != model.generate("fn", max_tokens=4).tokens


def test_timeout(rust: nanochat.Model) -> None:
    begin = time.monotonic()
    with pytest.raises(nanochat.GenerationTimeoutError, match=r"0.05 s") as e:
        while True:  # a quick machine ends before
            rust.generate("fn", max_tokens=None, ignore_end=True, timeout=0.05)
    assert isinstance(e.value, TimeoutError)
    assert e.value.completion.finish_reason == "cancelled"
    assert time.monotonic() - begin < 30
    with pytest.raises(nanochat.GenerationTimeoutError):
        rust.generate(["fn"] * 9, max_tokens=None, ignore_end=True, timeout=0.05)
    with pytest.raises(nanochat.InvalidArgumentError, match="timeout"):
        rust.generate("fn", timeout=0)
    assert rust.generate("fn", max_tokens=3, timeout=60).tokens


def test_info_of_the_shipped_model(rust: nanochat.Model) -> None:
    i = rust.info
    assert i.name == "nano-5m-rust" and i.path == str(SHIPPED) and i.licence == "MIT"
    assert i.bytes == SHIPPED.stat().st_size and 0 < i.weight_bytes <= 2 * i.bytes
    assert 2 < i.bits_per_weight < 8 and len(i.sha256) == 64 and i.layers == 6
    assert "nano-5m-rust" in repr(rust) and "bits each" in repr(rust)


def test_pickle_is_name_and_digest(rust: nanochat.Model, monkeypatch: pytest.MonkeyPatch, small: str) -> None:
    data = pickle.dumps(rust)
    assert str(SHIPPED.parent).encode() in data and len(data) < 2000
    with pickle.loads(data) as copy:
        assert copy.info == rust.info
    call, args = rust.__reduce__()
    with pytest.raises(nanochat.ChecksumError, match="pickled"):
        call(*args[:-1], "0" * 64)  # type: ignore[operator,index]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("plain", "plain"),
        ("Look:\n```rust\nfn a() {}\n```\nand ```more```", "fn a() {}\n"),
        ("```\nunclosed\n", "unclosed\n"),
        ("~~~\na\n```\nb\n~~~\n", "a\n```\nb\n"),
        ("````md\n```\nx\n```\n````\n", "```\nx\n```\n"),
        ("", ""),
    ],
)
def test_code(text: str, code: str) -> None:
    done = nanochat.Completion(text, [], "stop", nanochat.Usage(), 0)
    assert done.code() == code


def test_device(small: str) -> None:
    try:
        with nanochat.load_model(small, device="cuda") as m:
            assert m.info.device.startswith("cuda")
    except nanochat.UnsupportedError as e:
        assert e.hint  # there is no GPU here
    with pytest.raises(nanochat.InvalidArgumentError, match="tpu"):
        nanochat.load_model(small, device="tpu")  # type: ignore[arg-type]
    with pytest.raises(nanochat.InvalidArgumentError, match="ctx"):
        nanochat.load_model(small, ctx=64, context=32)
    with nanochat.load_model(small, ctx=64, device="cpu") as m:
        assert (m.info.context, m.info.device) == (64, "cpu")


def test_every_error_has_a_code_and_one_root() -> None:
    from nanochat import errors

    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, nanochat.NanochatError)
        error = kind("what", hint="why")
        same = pickle.loads(pickle.dumps(error))
        assert (type(same), same.message, same.hint, same.code) == (kind, "what", "why", kind.code)
    header = (ROOT / "include" / "nanochat.h").read_text()
    for code, kind in errors.BY_CODE.items():
        assert f" {code}" in header, (code, kind)


def test_errors_keep_what_they_know_in_a_pickle() -> None:
    e = nanochat.ModelNotFoundError("no", hint="h")
    e.near = ("x",)
    assert pickle.loads(pickle.dumps(e)).near == ("x",)


def test_token_is_a_text(model: nanochat.Model) -> None:
    with model.stream("x", max_tokens=3, logprobs=2) as stream:
        token = next(stream)
    same = pickle.loads(pickle.dumps(token))
    assert (same, same.id, same.logprob, same.top) == (token, token.id, token.logprob, token.top)


def test_path_object_and_url(small: str) -> None:
    for name in (Path(small), Path(small).as_uri()):
        with nanochat.load_model(name) as m:
            assert m.info.path == small
