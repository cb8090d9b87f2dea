"""Models."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from nanochat import _arrays
from nanochat import _library as c
from nanochat._context import Context
from nanochat._html import count
from nanochat._options import normalise
from nanochat._stream import SLICE, TokenStream
from nanochat._types import Completion, GenOptions, Message, ModelInfo, Token
from nanochat.errors import ChecksumError, InvalidArgumentError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nanochat._session import Session


class Model(Context):
    """An open model; load_model() makes it. It may be used by any number of threads, and is closed by close(), at the
    end of a with statement, or when nothing refers to it any more."""

    info: ModelInfo

    def __init__(self, backend: Any, path: str, options: Mapping[str, Any], name: str | None, isolate: bool) -> None:
        self._backend, self._path, self._options = backend, path, dict(options)
        self._name, self._isolate = name, isolate
        self._engine: Any = backend.model(path, self._options)
        self.info = ModelInfo._of(self._engine.info(), name, path)

    @overload
    def generate(  # type: ignore[overload-overlap]  # str is a sequence of str, and comes first
        self, prompt: str, **options: Unpack[GenOptions]
    ) -> Completion: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Unpack[GenOptions]) -> list[Completion]: ...
    def generate(self, prompt: str | Sequence[str], **options: Unpack[GenOptions]) -> Completion | list[Completion]:
        """Continues a prompt, or several at the same time."""
        if not isinstance(prompt, str):
            return self.generate_batch(prompt, **options)
        return finish(self.stream(prompt, **options))

    def generate_batch(self, prompts: Sequence[str], **options: Unpack[GenOptions]) -> list[Completion]:
        """Continues several prompts at the same time. Every answer is the one that the prompt gets alone."""
        if isinstance(prompts, str):
            raise TypeError("generate_batch() takes a sequence of prompts; generate() takes one")
        prompts, named = list(prompts), normalise(options)
        if not prompts:
            return []
        sources = self._engine.streams(prompts, named)
        streams = [TokenStream(s, options, p) for s, p in zip(sources, prompts, strict=True)]
        try:
            while any(s._ended is None for s in streams):
                place = self._engine.ready(sources, SLICE)
                if place is None:
                    for s in streams:
                        s._check_time()
                    continue
                if place == len(streams):  # every one has been read to its end
                    break
                streams[place]._step(0)
                while streams[place]._given < len(streams[place]._steps):
                    streams[place]._step(0)
            return [s.completion for s in streams]
        finally:
            for s in streams:
                s.close()

    def stream(self, prompt: str, **options: Unpack[GenOptions]) -> TokenStream:
        """Continues a prompt: an iterator over the pieces of the answer as they come."""
        return self._stream("text", [prompt], options, prompt=prompt)

    async def astream(self, prompt: str, **options: Unpack[GenOptions]) -> AsyncIterator[Token]:
        """As stream(), without blocking the event loop. The answer ends when the iterator is closed or its task is
        cancelled."""
        import asyncio  # which is slow to load

        stream = self.stream(prompt, **options)
        try:
            while (token := await asyncio.to_thread(next, stream, None)) is not None:
                yield token
        finally:
            stream.cancel()  # a thread may still wait in it; closing waits for that thread
            await asyncio.to_thread(stream.close)

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: Literal[False] = False,
        template: str | None = None,
        **options: Unpack[GenOptions],
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: Literal[True],
        template: str | None = None,
        **options: Unpack[GenOptions],
    ) -> TokenStream: ...
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: bool = False,
        template: str | None = None,
        **options: Unpack[GenOptions],
    ) -> Completion | TokenStream:
        """Answers a conversation: messages with role and content, or one text of the user. template: a name in
        system_info()["templates"]; by default that of the model."""
        answer = self._stream("chat", [turns(messages), template], options)
        return answer if stream else finish(answer)

    @overload
    def complete(
        self, prefix: str, suffix: str, *, stream: Literal[False] = False, **options: Unpack[GenOptions]
    ) -> Completion: ...
    @overload
    def complete(
        self, prefix: str, suffix: str, *, stream: Literal[True], **options: Unpack[GenOptions]
    ) -> TokenStream: ...
    def complete(
        self, prefix: str, suffix: str, *, stream: bool = False, **options: Unpack[GenOptions]
    ) -> Completion | TokenStream:
        """Writes what stands between prefix and suffix (fill in the middle). UnsupportedError if the model has not
        learned it: see info.fim."""
        answer = self._stream("fim", [prefix, suffix], options, prompt=prefix)
        return answer if stream else finish(answer)

    fim = complete

    def session(self) -> Session:
        """A context that grows from call to call, without computing its beginning again."""
        from nanochat._session import Session

        return Session(self)

    def _stream(
        self,
        kind: str,
        what: Sequence[Any],
        options: GenOptions,
        *,
        prompt: str | None = None,
        session: Any = None,
        flags: int = 0,
        on_end: Callable[[Completion], None] | None = None,
    ) -> TokenStream:
        source = self._engine.stream(kind, what, session, normalise(options, flags))
        return TokenStream(source, options, prompt, on_end)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """The token ids of a text, as a prompt is read: with BOS first, if the vocabulary asks for it. special: read
        the texts of special tokens as those tokens."""
        return cast("list[int]", self._engine.tokenize(text, special))

    def detokenize(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of token ids. Bytes that are not UTF-8 become U+FFFD. special: control tokens too."""
        return cast(str, self._engine.detokenize([int(i) for i in ids], special))

    def chat_tokens(self, messages: str | Sequence[Message], *, template: str | None = None) -> list[int]:
        """The token ids that chat() gives to the network."""
        return cast("list[int]", self._engine.chat_tokens(turns(messages), template))

    def logprobs(self, text: str | Sequence[int]) -> list[float]:
        """How probable a text (or token ids) is: for every token but the first, the natural logarithm of its
        probability after those before it."""
        flags = c.GENERATE_ECHO | c.GENERATE_LOGPROBS | c.GENERATE_PROMPT_ONLY
        steps = self._echo(text, GenOptions(), flags)
        return [s[3] for s in steps[1:]]

    def logits(self, text: str | Sequence[int]) -> Any:
        """What the network says about the token after every token of a text (or token ids): float32 of shape
        (tokens, vocabulary), as a NumPy array where NumPy is installed, else as a memoryview."""
        flags = c.GENERATE_ECHO | c.GENERATE_LOGITS
        steps = self._echo(text, GenOptions(max_tokens=1, ignore_end=True), flags)
        rows = [s[6] for s in steps[1:] if s[6]]
        return _arrays.floats(b"".join(rows), len(rows), self.info.vocab_size)

    def embed(self, text: str | Sequence[str]) -> Any:
        """The mean of the last hidden states over a text: float32 of shape (dim), or (texts, dim) for several, as
        logits() gives them."""
        if isinstance(text, str):
            data = self._embed(text)
            return _arrays.floats(data, len(data) // 4)
        several = [self._embed(t) for t in text]
        return _arrays.floats(b"".join(several), len(several), len(several[0]) // 4 if several else 0)

    def _embed(self, text: str) -> bytes:
        source = self._engine.stream(
            "text", [text], None, normalise(GenOptions(), c.GENERATE_EMBEDDING | c.GENERATE_PROMPT_ONLY)
        )
        try:
            read_all(source)
            return cast(bytes, source.embedding())
        finally:
            source.close()

    def _echo(self, text: str | Sequence[int], options: GenOptions, flags: int) -> list[Any]:
        kind, what = ("text", text) if isinstance(text, str) else ("ids", [int(i) for i in text])
        source = self._engine.stream(kind, [what], None, normalise(options, flags))
        try:
            return read_all(source)
        finally:
            source.close()

    def close(self) -> None:
        """Closes the model. Streams that were started go on. Closing twice is no error."""
        self._engine.close()
        if self._isolate:
            self._backend.leave()

    @property
    def closed(self) -> bool:
        return bool(self._engine.closed)

    def _leave(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        path = os.path.abspath(self._path)
        return _reopen, (self._name, path, self._options, self._isolate, self.info.sha256)

    def __repr__(self) -> str:
        i = self.info
        facts = [f"{count(i.params['total'])} weights"]
        if i.bits_per_weight:
            facts.append(f"{i.bits_per_weight:.2f} bits each")
        facts += [f"context {i.context}", i.kernel]
        facts += ["in its own process"] * self._isolate + ["closed"] * self.closed
        return f"<Model {i.name if self._name else os.path.basename(i.path)}: {', '.join(facts)}>"

    def _repr_html_(self) -> str:
        from nanochat import _html

        return _html.model(self.info, self.closed)


def _reopen(name: str | None, path: str, options: dict[str, Any], isolate: bool, sha256: str) -> Model:
    """Opens the model of a pickle: by its name where it has one, else by its path; the weights must be the same."""
    from nanochat import _zoo

    model = _zoo.open_model(name or path, options, isolate=isolate)
    if model.info.sha256 != sha256:
        found = model.info.sha256
        model.close()
        raise ChecksumError(
            f"{name or path} has the SHA-256 {found}, the pickled model had {sha256}", hint="pickle it again"
        )
    return model


def finish(stream: TokenStream) -> Completion:
    """Reads a stream to its end."""
    with stream:
        for _ in stream:
            pass
        return stream.completion


def read_all(source: Any) -> list[Any]:
    """All steps of a stream."""
    steps: list[Any] = []
    while not (steps and steps[-1][2]):
        source.read(steps, SLICE, 16)
    return [s for s in steps if s[1] >= 0]


def turns(messages: str | Sequence[Message]) -> list[list[str]]:
    """Messages as pairs of role and content."""
    if isinstance(messages, str):
        return [["user", messages]]
    out = []
    for i, m in enumerate(messages):
        if not isinstance(m, Mapping) or set(m) != {"role", "content"}:
            raise InvalidArgumentError(f"message {i} is {m!r:.80}", hint='write {"role": "user", "content": "..."}')
        if not isinstance(m["role"], str) or not isinstance(m["content"], str):
            raise InvalidArgumentError(f"role and content of message {i} are not both texts")
        out.append([m["role"], m["content"]])
    return out


def system_info(*, isolate: bool = False) -> dict[str, Any]:
    """The library and this machine: version, commit, kernels (best first), threads. isolate: asked in a process of
    its own."""
    from nanochat import _zoo

    backend = _zoo.backend(isolate)
    try:
        return dict(backend.system_info())
    finally:
        if isolate:
            backend.leave()
