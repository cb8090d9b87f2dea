"""Models, streams and completions."""

from __future__ import annotations

import asyncio
import ctypes
import difflib
import json
import os
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, overload

from nanochat import _library as c
from nanochat.errors import ClosedError, InvalidArgumentError, ModelNotFoundError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

FinishReason = Literal["stop", "length", "cancelled", "error"]

# How long a call into the library lasts at most, so that Ctrl-C is seen, in milliseconds.
_SLICE = 50


class GenerateOptions(TypedDict, total=False):
    """What to generate. The defaults are those of the command `nanochat generate`."""

    max_tokens: int | None
    """Tokens at most (200); None is as many as the context holds."""
    temperature: float
    """Divides the logits (0: the most likely token)."""
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    """Last tokens that penalties see (0: all)."""
    seed: int
    """The same seed gives the same text, on every machine."""
    stop: str | Sequence[str]
    """Texts that end the answer without being part of it."""
    logit_bias: Mapping[int, float]
    """Added to the logits of tokens; -inf bans one."""
    ignore_end: bool
    """Go on after the tokens that end a text."""
    special: bool
    """Read the texts of special tokens in the prompt as those tokens."""
    logprobs: int
    """Give log probabilities, and those of so many of the likeliest tokens."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model is and how it runs."""

    path: str
    kernel: str
    threads: int
    context: int
    vocab_size: int
    params: Mapping[str, int]
    """Number of weights by class, and "total"."""
    config: Mapping[str, Any]
    """The shape of the network by the keys of configuration files."""
    raw: Mapping[str, Any] = field(repr=False)
    """All that the library says."""


@dataclass(frozen=True)
class Usage:
    """Tokens and times of an answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Completion:
    """An answer."""

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    usage: Usage
    seed: int
    logprobs: list[float] | None = None
    """With the option logprobs: the natural logarithm of each token's probability."""

    def __str__(self) -> str:
        return self.text


class Token(str):
    """The text of one step of an answer, whole characters, perhaps none, with the token it came from."""

    id: int
    """The token; -1 for text that was held back until the end."""
    logprob: float | None
    top: list[tuple[int, float]]
    """With the option logprobs: the likeliest tokens here, and the logarithms of their probabilities."""

    def __new__(
        cls, text: str, id: int = -1, logprob: float | None = None, top: Sequence[tuple[int, float]] = ()
    ) -> Self:
        token = super().__new__(cls, text)
        token.id, token.logprob, token.top = id, logprob, list(top)
        return token


def load_model(
    path: str | os.PathLike[str],
    *,
    context: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    speculate: int = 0,
    kernel: str | None = None,
    kv_int8: bool = False,
    huge_pages: bool = True,
    pin: bool = False,
) -> Model:
    """Opens a model file (GGUF).

    context: positions of a stream, prompt and answer (default: those of the model); threads: default the cores this
    process may use; batch: streams computed at the same time (8); speculate: tokens to guess ahead from the text so
    far; kernel: a name in system_info()["kernels"]; kv_int8: keep keys and values in 8 bits; huge_pages: copy the
    weights into memory with huge pages; pin: bind threads to processors. Only kv_int8 changes what is generated.
    """
    return Model(
        os.fspath(path),
        {
            "context": context,
            "threads": threads,
            "batch": batch,
            "speculate": speculate,
            "kernel": kernel,
            "kv_int8": kv_int8,
            "huge_pages": huge_pages,
            "pin": pin,
        },
    )


def system_info() -> dict[str, Any]:
    """The library and this machine: version, commit, kernels (best first), threads."""
    return cast("dict[str, Any]", json.loads(c.library().text("system_info")))


def _uint32(name: str, value: int | None) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    if not 0 <= value < 1 << 32:
        raise InvalidArgumentError(f"{name} is {value}, expected 0 to {(1 << 32) - 1}")
    return value


class Model:
    """An open model. It may be used by any number of threads, and is closed by close(), at the end of a with
    statement, or when nothing refers to it any more."""

    info: ModelInfo

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        lib = self._lib = c.library()
        self._path, self._options = path, dict(options)
        o = c.ModelOptions()
        lib.model_options_init(o, ctypes.sizeof(o))
        for name in ("context", "threads", "batch", "speculate"):
            setattr(o, name, _uint32(name, options[name]))
        o.flags = (
            c.MODEL_PIN * bool(options["pin"])
            | c.MODEL_KV_INT8 * bool(options["kv_int8"])
            | c.MODEL_NO_HUGE_PAGES * (not options["huge_pages"])
        )
        if options["kernel"] is not None:
            o.kernel = os.fsencode(options["kernel"])
        handle = ctypes.c_void_p()
        encoded = os.fsencode(path)
        if b"\0" in encoded:
            raise InvalidArgumentError("the path has a NUL character")
        try:
            lib.call("model_open", encoded, o, ctypes.byref(handle))
        except ModelNotFoundError as e:
            raise ModelNotFoundError(f"no model {path!r}: {e.message}", hint=_nearest(path) or e.hint) from None
        self._handle = handle.value
        self._close = weakref.finalize(self, lib.model_close, self._handle)
        raw = json.loads(lib.text("model_info", self._handle))
        self.info = ModelInfo(
            path=raw["path"],
            kernel=raw["kernel"],
            threads=raw["threads"],
            context=raw["context"],
            vocab_size=raw["vocabulary"]["size"],
            params=raw["params"],
            config=raw["config"],
            raw=raw,
        )

    @overload
    def generate(  # type: ignore[overload-overlap]  # str is a sequence of str, and comes first
        self, prompt: str, **options: Unpack[GenerateOptions]
    ) -> Completion: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Unpack[GenerateOptions]) -> list[Completion]: ...
    def generate(
        self, prompt: str | Sequence[str], **options: Unpack[GenerateOptions]
    ) -> Completion | list[Completion]:
        """Continues a prompt, or several at the same time."""
        if not isinstance(prompt, str):
            return self.generate_batch(prompt, **options)
        with self.stream(prompt, **options) as stream:
            for _ in stream:
                pass
            return stream.completion

    def generate_batch(self, prompts: Sequence[str], **options: Unpack[GenerateOptions]) -> list[Completion]:
        """Continues several prompts at the same time. Every answer is the one that the prompt gets alone."""
        streams: list[TokenStream] = []
        try:
            for prompt in prompts:
                streams.append(self.stream(prompt, **options))
            running = list(streams)
            while running:
                for s in running:
                    s._drain()
                running = [s for s in running if not s._ended]
                if running:
                    running[0]._step(_SLICE)
            return [s.completion for s in streams]
        finally:
            for s in streams:
                s.close()

    def stream(self, prompt: str, **options: Unpack[GenerateOptions]) -> TokenStream:
        """Continues a prompt: an iterator over the pieces of the answer as they come."""
        return TokenStream(self, prompt, options)

    async def astream(self, prompt: str, **options: Unpack[GenerateOptions]) -> AsyncIterator[Token]:
        """As stream(), without blocking the event loop."""
        stream = self.stream(prompt, **options)
        try:
            while (token := await asyncio.to_thread(next, stream, None)) is not None:
                yield token
        finally:
            stream.cancel()  # a thread may still wait in it; closing waits for that thread
            await asyncio.to_thread(stream.close)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """The token ids of a text, as a prompt is read: with BOS first, if the vocabulary asks for it."""
        data = text.encode()
        flags = c.TOKENIZE_PROMPT | c.TOKENIZE_SPECIAL * special
        count, capacity = ctypes.c_size_t(), len(data) + 2  # no token stands for less than a byte, but BOS
        while True:
            ids = (ctypes.c_int32 * capacity)()
            arguments = (data, len(data), flags, ids, capacity, ctypes.byref(count))
            if self._lib.call("tokenize", self._open(), *arguments) == c.OK:
                return ids[: count.value]
            capacity = count.value

    def detokenize(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of token ids. Bytes that are not UTF-8 become U+FFFD. special: control tokens too."""
        ids = list(ids)
        array = (ctypes.c_int32 * len(ids))(*ids)
        flags = 0 if special else c.DETOKENIZE_PLAIN
        return self._lib.text("detokenize", self._open(), array, len(ids), flags).decode(errors="replace")

    def close(self) -> None:
        """Closes the model. Streams that were started go on. Closing twice is no error."""
        self._close()

    @property
    def closed(self) -> bool:
        return not self._close.alive

    def _open(self) -> int | None:
        if self.closed:
            raise ClosedError("the model was closed")
        return self._handle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return Model, (os.path.abspath(self._path), self._options)

    def __repr__(self) -> str:
        i = self.info
        state = ", closed" if self.closed else ""
        weights = _short(i.params["total"])
        return f"<Model {os.path.basename(i.path)}: {weights} weights, context {i.context}, {i.kernel}{state}>"


def _short(n: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)


def _nearest(path: str) -> str | None:
    """A hint with the most similar model file in the same directory."""
    directory = os.path.dirname(path) or "."
    try:
        names = [n for n in os.listdir(directory) if n.endswith(".gguf")]
    except OSError:
        return None
    near = difflib.get_close_matches(os.path.basename(path), names, n=1)
    return f"did you mean {os.path.join(directory, near[0]) if directory != '.' else near[0]}?" if near else None


def _check_names(options: Mapping[str, Any]) -> None:
    known = GenerateOptions.__annotations__
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            did = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise TypeError(f"unknown option {name!r}{did}")


def _c_options(lib: c.Library, options: GenerateOptions) -> tuple[c.GenerateOptions, list[object]]:
    """Options for C, and what they point to."""
    _check_names(options)
    o = c.GenerateOptions()
    lib.generate_options_init(o, ctypes.sizeof(o))
    keep: list[object] = []
    for name in ("top_k", "penalty_window"):
        if name in options:
            setattr(o, name, _uint32(name, cast("dict[str, int]", options)[name]))
    for name in ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"):
        if name in options:
            setattr(o, name, float(cast("dict[str, float]", options)[name]))
    if "max_tokens" in options:
        n = options["max_tokens"]
        if n is not None and n < 1:
            raise InvalidArgumentError(f"max_tokens is {n}, expected 1 or more", hint="None is as many as fit")
        o.max_tokens = _uint32("max_tokens", n)
    seed = options.get("seed", 0)
    if not 0 <= seed < 1 << 64:
        raise InvalidArgumentError(f"seed is {seed}, expected 0 to 2**64 - 1")
    o.seed = seed
    if "logprobs" in options:
        o.flags |= c.GENERATE_LOGPROBS
        o.top_logprobs = _uint32("logprobs", options["logprobs"])
    o.flags |= c.GENERATE_IGNORE_END * bool(options.get("ignore_end")) | c.GENERATE_SPECIAL * bool(
        options.get("special")
    )
    stop = options.get("stop", ())
    if stops := [s.encode() for s in ([stop] if isinstance(stop, str) else stop)]:
        texts, lengths = (ctypes.c_char_p * len(stops))(*stops), (ctypes.c_size_t * len(stops))(*map(len, stops))
        o.stops, o.stop_lengths, o.stop_count = texts, lengths, len(stops)
        keep += [texts, lengths]
    if bias := options.get("logit_bias"):
        ids, values = (ctypes.c_int32 * len(bias))(*bias), (ctypes.c_float * len(bias))(*bias.values())
        o.bias_ids, o.bias_values, o.bias_count = ids, values, len(bias)
        keep += [ids, values]
    return o, keep


class TokenStream(Iterator[Token]):
    """The pieces of an answer, as they come. One thread reads it; cancel() and close() work from any."""

    def __init__(self, model: Model, prompt: str, options: GenerateOptions) -> None:
        lib = self._lib = model._lib
        o, keep = _c_options(lib, options)
        data, handle = prompt.encode(), ctypes.c_void_p()
        lib.call("stream_open", model._open(), data, len(data), o, ctypes.byref(handle))
        del keep
        self._handle = handle.value
        self._close = weakref.finalize(self, lib.stream_close, self._handle)
        self._seed, self._logprobs, self._top = options.get("seed", 0), "logprobs" in options, o.top_logprobs
        self._buffer = ctypes.create_string_buffer(4096)
        self._piece = c.Piece()
        lib.piece_init(self._piece, ctypes.sizeof(self._piece))
        self._tokens: list[Token] = []
        self._ended: FinishReason | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        while self._ended is None:
            if (token := self._step(_SLICE)) is not None:
                return token
        raise StopIteration

    def _step(self, wait: int) -> Token | None:
        """The next token, or None if none came in time or the answer is over."""
        if not self._close.alive:
            raise ClosedError("the stream was closed")
        p = self._piece
        while True:
            arguments = (self._handle, wait, self._buffer, len(self._buffer), p)
            status = self._lib.call("stream_next", *arguments)
            if status != c.BUFFER_TOO_SMALL:
                break
            self._buffer = ctypes.create_string_buffer(p.length)
        if status == c.TIMEOUT:
            return None
        if p.finish:
            self._ended = cast("FinishReason", c.FINISH.get(p.finish, "error"))
            return None
        text = ctypes.string_at(self._buffer, p.length).decode()
        token = Token(text, p.token, p.logprob if self._logprobs and p.token >= 0 else None, self._candidates())
        self._tokens.append(token)
        return token

    def _candidates(self) -> list[tuple[int, float]]:
        if not self._top:
            return []
        ids, values, count = (ctypes.c_int32 * self._top)(), (ctypes.c_float * self._top)(), ctypes.c_size_t()
        self._lib.call("stream_top", self._handle, ids, values, self._top, ctypes.byref(count))
        return list(zip(ids[: count.value], values[: count.value], strict=True))

    def _drain(self) -> None:
        """Reads what is there already."""
        while self._ended is None and self._step(0) is not None:
            pass

    @property
    def completion(self) -> Completion:
        """The answer so far; whole once the stream has been read to its end."""
        stats = c.Stats()
        self._lib.stats_init(stats, ctypes.sizeof(stats))
        if self._close.alive:
            self._lib.call("stream_stats", self._handle, stats)
        ids = [t.id for t in self._tokens if t.id >= 0]
        return Completion(
            text="".join(self._tokens),
            tokens=ids,
            finish_reason=self._ended or "cancelled",
            usage=Usage(
                prompt_tokens=stats.prompt_tokens,
                completion_tokens=len(ids),
                cached_tokens=stats.cached_tokens,
                prefill_seconds=stats.prefill_ns / 1e9,
                decode_seconds=stats.decode_ns / 1e9,
            ),
            seed=self._seed,
            logprobs=[t.logprob for t in self._tokens if t.logprob is not None] if self._logprobs else None,
        )

    def cancel(self) -> None:
        """Ends generation and returns at once. The reader gets CancelledError."""
        if self._close.alive:
            self._lib.stream_cancel(self._handle)

    def close(self) -> None:
        """Ends the stream. Closing twice is no error."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a stream cannot be pickled; pickle its completion")
