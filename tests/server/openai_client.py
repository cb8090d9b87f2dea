"""Talks to `nanochat serve` with OpenAI's own package, unmodified.

usage: openai_client.py URL GUARDED_URL NARROW_URL

URL has no key; GUARDED_URL asks for the key "secret"; NARROW_URL computes one answer
at a time and lets none wait.
"""

import asyncio
import math
import sys
import threading
import time

import openai
from openai import AsyncOpenAI, OpenAI

url, guarded, narrow = (u + "/v1" for u in sys.argv[1:4])
client = OpenAI(base_url=url, api_key="none", max_retries=0)
MODEL = "nano-5m-rust"
ASK = [{"role": "system", "content": "You write Rust."}, {"role": "user", "content": "fn main() {"}]


def raises(kind, call):
    """Returns the exception of exactly this kind that call raises."""
    try:
        call()
    except openai.OpenAIError as e:
        assert type(e) is kind, f"{type(e)}: {e}"
        return e
    raise AssertionError(f"no {kind.__name__}")


def chat():
    whole = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=24, seed=7, temperature=0.8, user="me")
    assert whole.object == "chat.completion" and whole.model == MODEL and whole.id.startswith("chatcmpl-")
    assert whole.system_fingerprint.startswith("fp_")
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole._request_id
    parts = list(
        client.chat.completions.create(
            model=MODEL,
            messages=ASK,
            max_completion_tokens=24,
            seed=7,
            temperature=0.8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert parts[0].choices[0].delta.role == "assistant"
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert text == choice.message.content, (text, choice.message.content)
    assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == choice.finish_reason
    assert parts[-1].choices == [] and parts[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(p.usage is None for p in parts[:-1])
    assert len({p.id for p in parts}) == 1


def chat_details():
    r = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=6, seed=1, n=3, logprobs=True, top_logprobs=4, stop=["@@"]
    )
    assert [c.index for c in r.choices] == [0, 1, 2]
    for i, c in enumerate(r.choices):
        tokens = c.logprobs.content
        assert "".join(t.token for t in tokens) == c.message.content
        assert all(len(t.top_logprobs) == 4 and t.logprob <= 0 and bytes(t.bytes).decode() == t.token for t in tokens)
        alone = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=6, seed=1 + i, stop=["@@"])
        assert alone.choices[0].message.content == c.message.content
    streams = {0: "", 1: "", 2: ""}
    for p in client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=6, seed=1, n=3, stop=["@@"], stream=True
    ):
        streams[p.choices[0].index] += p.choices[0].delta.content or ""
    assert list(streams.values()) == [c.message.content for c in r.choices]
    banned = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=4, temperature=0, logprobs=True)
    first = banned.choices[0].logprobs.content[0].token
    ids = client.post("/../tokenize", body={"content": first}, cast_to=object)["tokens"]
    other = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=4, temperature=0, logit_bias={str(i): -100 for i in ids}
    )
    assert not other.choices[0].message.content.startswith(first)
    with client.chat.completions.stream(model=MODEL, messages=ASK, max_tokens=8, seed=3) as s:
        text = "".join(e.delta for e in s if e.type == "content.delta")
        assert s.current_completion_snapshot.choices[0].message.content == text


def completions():
    r = client.completions.create(
        model=MODEL, prompt="fn add(a: i32", max_tokens=12, temperature=0, echo=True, logprobs=2
    )
    c = r.choices[0]
    assert r.object == "text_completion" and c.text.startswith("fn add(a: i32")
    lp = c.logprobs
    assert lp.token_logprobs[0] is None and all(x <= 0 for x in lp.token_logprobs[1:])
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.text_offset) == len(lp.top_logprobs)
    for token, at in zip(lp.tokens, lp.text_offset, strict=True):
        assert c.text[at : at + len(token)] == token or token.startswith("<|"), (token, at)
    ids = client.post("/../tokenize", body={"content": "struct P {", "add_special": True}, cast_to=object)["tokens"]
    back = client.post("/../detokenize", body={"tokens": ids}, cast_to=object)["content"]
    assert back.endswith("struct P {")
    by_text = client.completions.create(model=MODEL, prompt=["struct P {", "enum E {"], max_tokens=8, seed=5)
    by_ids = client.completions.create(model=MODEL, prompt=ids, max_tokens=8, seed=5)
    lists = client.completions.create(model=MODEL, prompt=[ids, ids], max_tokens=8, seed=5)
    assert [x.index for x in by_text.choices] == [0, 1]
    assert by_text.choices[0].text == by_ids.choices[0].text == lists.choices[0].text == lists.choices[1].text
    best = client.completions.create(model=MODEL, prompt="let x", max_tokens=8, n=2, best_of=4, seed=2)
    assert len(best.choices) == 2
    infill = client.completions.create(
        model=MODEL, prompt="fn one() -> i32 {\n", suffix="\n}\n", max_tokens=8, temperature=0
    )
    assert isinstance(infill.choices[0].text, str)
    text = "".join(
        p.choices[0].text
        for p in client.completions.create(model=MODEL, prompt="struct P {", max_tokens=8, seed=5, stream=True)
    )
    assert text == by_text.choices[0].text
    stop = client.completions.create(
        model=MODEL, prompt="fn main() {", max_tokens=60, temperature=0, stop="= 1;", logprobs=0
    )
    assert "= 1;" not in stop.choices[0].text and stop.choices[0].finish_reason == "stop"
    assert stop.choices[0].logprobs.top_logprobs is None
    scores = client.completions.create(model=MODEL, prompt="fn main", max_tokens=0, echo=True, logprobs=1)
    assert scores.choices[0].text == "fn main" and scores.usage.completion_tokens == 0


def embeddings():
    packed = client.embeddings.create(model=MODEL, input=["fn main() {}", "struct A;"])  # the package asks for base64
    plain = client.embeddings.create(model=MODEL, input="fn main() {}", encoding_format="float")
    assert [e.index for e in packed.data] == [0, 1] and packed.usage.prompt_tokens > 0
    for a, b in zip(packed.data[0].embedding, plain.data[0].embedding, strict=True):
        assert abs(a - b) < 1e-6
    assert abs(math.fsum(x * x for x in plain.data[0].embedding) - 1) < 1e-4
    assert client.models.retrieve(MODEL).embedding_dim == len(plain.data[0].embedding)
    assert [m.id for m in client.models.list()] == [MODEL]


def errors():
    create = client.chat.completions.create
    e = raises(openai.BadRequestError, lambda: create(model=MODEL, messages=ASK, max_tokens=5000))
    assert e.param == "max_tokens" and "5000" in e.message and "512" in e.message and e.type == "invalid_request_error"
    e = raises(
        openai.BadRequestError, lambda: create(model=MODEL, messages=[{"role": "user", "content": "word " * 2000}])
    )
    assert e.code == "context_length_exceeded" and e.param == "messages" and "512" in e.message
    e = raises(openai.NotFoundError, lambda: create(model="gpt-5", messages=ASK))
    assert e.code == "model_not_found" and MODEL in e.message
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for extra in (
        {"tools": tools},
        {"response_format": {"type": "json_object"}},
        {"n": 10**9},
        {"temperature": -1},
        {"top_p": 1.5},
        {"stop": ["x"] * 5},
        {"logit_bias": {"999999": 1}},
        {"logit_bias": {"x": 1}},
        {"top_logprobs": 3},
        {"stop": "y" * 65},
        {"messages": []},
    ):
        e = raises(openai.BadRequestError, lambda extra=extra: create(**{"model": MODEL, "messages": ASK, **extra}))
        assert e.param in (*extra, "n"), (extra, e.param)
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    raises(openai.BadRequestError, lambda: create(model=MODEL, messages=image))
    parts = [{"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "fn"}]}]
    create(model=MODEL, messages=parts, max_tokens=1, extra_body={"not_known": 1, "min_p": 0.1, "top_k": 5})

    raises(openai.AuthenticationError, lambda: OpenAI(base_url=guarded, api_key="wrong", max_retries=0).models.list())
    assert OpenAI(base_url=guarded, api_key="secret").models.list().data
    raises(
        openai.APIConnectionError,
        lambda: OpenAI(base_url="http://127.0.0.1:9/v1", api_key="x", max_retries=0).models.list(),
    )


def timeouts_and_retries():
    long = {"model": MODEL, "messages": ASK, "max_tokens": 480, "extra_body": {"ignore_eos": True}}
    raises(openai.APITimeoutError, lambda: client.with_options(timeout=0.02).chat.completions.create(n=8, **long))
    one = OpenAI(base_url=narrow, api_key="none", max_retries=0)
    one.chat.completions.create(model=MODEL, messages=ASK, max_tokens=2)
    with one.chat.completions.create(stream=True, **long) as stream:
        next(iter(stream))
        e = raises(openai.RateLimitError, lambda: one.chat.completions.create(model=MODEL, messages=ASK, max_tokens=2))
        assert e.code == "queue_full" and int(e.response.headers["retry-after"]) >= 1
        done = threading.Timer(0.3, stream.close)  # the client goes away: its place is free at once
        done.start()
        r = one.with_options(max_retries=4).chat.completions.create(model=MODEL, messages=ASK, max_tokens=2)
        assert r.choices
        done.join()
    start = time.monotonic()
    one.chat.completions.create(model=MODEL, messages=ASK, max_tokens=2)
    assert time.monotonic() - start < 2


async def together():
    many = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    single = [
        client.completions.create(model=MODEL, prompt=f"fn f{i}(", max_tokens=16, seed=i).choices[0].text
        for i in range(8)
    ]

    async def one(i):
        text = ""
        async for part in await many.completions.create(
            model=MODEL, prompt=f"fn f{i}(", max_tokens=16, seed=i, stream=True
        ):
            text += part.choices[0].text
        return text

    assert list(await asyncio.gather(*(one(i) for i in range(8)))) == single
    r = await many.chat.completions.create(model=MODEL, messages=ASK, max_tokens=4)
    assert r.choices[0].message.role == "assistant"
    assert (await many.embeddings.create(model=MODEL, input="x")).data
    await many.close()


for check in (chat, chat_details, completions, embeddings, errors, timeouts_and_retries):
    check()
    print(check.__name__, "ok")
asyncio.run(together())
print("together ok")
