"""The engine in this process. What _remote offers for an engine in another process has the same methods; everything
that goes in and comes out of them is None, bool, int, float, str, bytes, list or dict, or another of these objects."""

from __future__ import annotations

import ctypes
import json
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from nanochat import _library as c
from nanochat.errors import ClosedError, InvalidArgumentError

# One step of an answer: text, token or -1, number of the finish or 0, logprob, whether it is echoed, likeliest
# tokens, logits as the bytes of float32.
Step = tuple[str, int, int, "float | None", bool, list[tuple[int, float]], "bytes | None"]


# Seconds that a call takes when it has to wait for a step.
_WAITED = 100e-6


def path_bytes(what: str, path: str) -> bytes:
    """A path or name for C."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise InvalidArgumentError(f"the {what} has a NUL character")
    return encoded


def _close_handle(close: Any, handle: ctypes.c_void_p) -> None:
    if handle.value:
        close(handle.value)


class Owner:
    """Something of the library that is closed by close(), or when nothing refers to it any more."""

    kind = "object"

    def __init__(self, lib: c.Library, closer: str) -> None:
        # The owner is there before what it owns, so that an interrupt of the call that opens it leaves nothing open.
        self.lib, self._handle, self._closer = lib, ctypes.c_void_p(), getattr(lib, closer)
        self._close = weakref.finalize(self, _close_handle, self._closer, self._handle)

    def open(self, name: str, *arguments: Any) -> None:
        """Calls the function that makes it."""
        self.lib.call(name, *arguments, ctypes.byref(self._handle))

    @property
    def handle(self) -> int:
        if not self._close.alive:
            raise ClosedError(f"the {self.kind} was closed")
        return self._handle.value or 0

    @property
    def closed(self) -> bool:
        return not self._close.alive

    def close(self) -> None:
        if self._close.alive:  # first closed, then forgotten: an interrupt between them leaves what closes it again
            _close_handle(self._closer, self._handle)
            self._close.detach()


class NativeStream(Owner):
    """A stream."""

    kind = "stream"

    def __init__(self, lib: c.Library, top: int, logits: int) -> None:
        super().__init__(lib, "stream_close")
        self._top, self._logits = top, logits  # tokens to report; floats of a row of logits, or 0
        self._buffer = ctypes.create_string_buffer(4096)
        self._piece = c.Piece()
        lib.piece_init(self._piece, ctypes.sizeof(self._piece))
        self._piece.token, self._place = 0, 0

    def read(self, steps: list[Step], wait: int, most: int = 1) -> None:
        """Waits up to wait milliseconds for a step; appends it to steps with what else is there, at most so many.
        steps is the same list in every call.

        An interrupt comes most often when a call returns, with its piece written already. The piece is kept in
        _piece then, for the place in steps that it belongs to, so that a stream that is read on has no hole."""
        p, end, begin = self._piece, len(steps) + most, time.perf_counter()
        while len(steps) < end:
            held = self._place == len(steps) and (p.token > 0 or p.length or p.finish)
            if not held or p.length > len(self._buffer):
                need = p.length if held else 0
                p.token = p.finish = p.length = 0
                if need > len(self._buffer):
                    self._buffer = ctypes.create_string_buffer(need)
                self._place = len(steps)
                status = self.lib.call("stream_next", self.handle, wait, self._buffer, len(self._buffer), p)
                if status == c.TIMEOUT:
                    return
                if status == c.BUFFER_TOO_SMALL:
                    continue
            steps.append(self._step())
            if p.finish or (wait and time.perf_counter() - begin > _WAITED):
                return  # it was waited for: there is no other yet, and asking costs the engine time
            wait = 0

    def _step(self) -> Step:
        p = self._piece
        text = ctypes.string_at(self._buffer, p.length).decode(errors="replace") if p.length else ""
        if p.finish or p.token < 0:
            return text, p.token, p.finish, None, False, [], None
        top = self._candidates() if self._top else []
        row = self.lib.floats("stream_logits", self.handle, capacity=self._logits) if self._logits else None
        return text, p.token, 0, p.logprob, bool(p.flags & c.PIECE_ECHO), top, row

    def _candidates(self) -> list[tuple[int, float]]:
        ids, values, count = (ctypes.c_int32 * self._top)(), (ctypes.c_float * self._top)(), ctypes.c_size_t()
        self.lib.call("stream_top", self.handle, ids, values, self._top, ctypes.byref(count))
        return list(zip(ids[: count.value], values[: count.value], strict=True))

    def embedding(self) -> bytes:
        return self.lib.floats("stream_embedding", self.handle, capacity=4096)

    def stats(self) -> dict[str, int]:
        stats = c.Stats()
        self.lib.stats_init(stats, ctypes.sizeof(stats))
        self.lib.call("stream_stats", self.handle, stats)
        return {str(f[0]): int(getattr(stats, f[0])) for f in c.Stats._fields_}

    def cancel(self) -> None:
        if self._close.alive:
            self.lib.stream_cancel(self._handle.value)


class NativeSession(Owner):
    """A context that grows."""

    kind = "session"

    def __init__(self, lib: c.Library, model: NativeModel) -> None:
        super().__init__(lib, "session_close")
        self.open("session_open", model.handle)

    def tokens(self) -> list[int]:
        return self.lib.ids("session_tokens", self.handle)

    def truncate(self, keep: int) -> None:
        self.lib.call("session_truncate", self.handle, keep)


class NativeModel(Owner):
    """A model."""

    kind = "model"

    def __init__(self, lib: c.Library, path: str, options: Mapping[str, Any]) -> None:
        o = c.ModelOptions()
        lib.model_options_init(o, ctypes.sizeof(o))
        for name in ("context", "threads", "batch", "speculate"):
            setattr(o, name, options[name])
        o.flags = (
            c.MODEL_PIN * bool(options["pin"])
            | c.MODEL_KV_INT8 * bool(options["kv_int8"])
            | c.MODEL_NO_HUGE_PAGES * (not options["huge_pages"])
        )
        for name in ("kernel", "device"):
            if options[name] is not None:
                setattr(o, name, path_bytes(name, options[name]))
        super().__init__(lib, "model_close")
        self.open("model_open", path_bytes("path", path), o)
        raw = self.info()
        self._vocabulary: int = raw["vocabulary"]["size"]

    def info(self) -> dict[str, Any]:
        return dict(json.loads(self.lib.text("model_info", self.handle)))

    def tokenize(self, text: str, special: bool) -> list[int]:
        data = text.encode()
        flags = c.TOKENIZE_PROMPT | c.TOKENIZE_SPECIAL * special
        room = len(data) + 2  # no token stands for less than a byte, but BOS
        return self.lib.ids("tokenize", self.handle, data, len(data), flags, capacity=room)

    def detokenize(self, ids: Sequence[int], special: bool) -> str:
        array = (ctypes.c_int32 * len(ids))(*ids)
        flags = 0 if special else c.DETOKENIZE_PLAIN
        return self.lib.text("detokenize", self.handle, array, len(ids), flags).decode(errors="replace")

    def stream(
        self, kind: str, what: Sequence[Any], session: NativeSession | None, options: dict[str, Any]
    ) -> NativeStream:
        """Starts a stream: "text" with a prompt, "ids" with token ids, "fim" with prefix and suffix, "chat" with
        messages and the name of a template or None."""
        o, keep = c_options(self.lib, options)
        model, stream = self.handle, self._stream(o)
        if kind == "text":
            data = what[0].encode()
            name, first = ("stream_open", model) if session is None else ("session_stream", session.handle)
            stream.open(name, first, data, len(data), o)
        elif kind == "ids":
            ids = (ctypes.c_int32 * len(what[0]))(*what[0])
            stream.open("stream_open_tokens", model, ids, len(ids), o)
        elif kind == "fim":
            prefix, suffix = what[0].encode(), what[1].encode()
            stream.open("fim_open", model, prefix, len(prefix), suffix, len(suffix), o)
        else:
            held = None if session is None else session.handle
            stream.open("chat_open", model, held, *c_messages(*what), o)
        del keep
        return stream

    def _stream(self, o: c.GenerateOptions) -> NativeStream:
        return NativeStream(self.lib, o.top_logprobs, self._vocabulary if o.flags & c.GENERATE_LOGITS else 0)

    def chat_tokens(self, messages: Sequence[Sequence[str]], template: str | None) -> list[int]:
        return self.lib.ids("chat_tokens", self.handle, *c_messages(messages, template))

    def streams(self, prompts: Sequence[str], options: dict[str, Any]) -> list[NativeStream]:
        """Starts a stream for every prompt, or none."""
        o, keep = c_options(self.lib, options)
        texts, lengths, count = c_texts(prompts)
        handles, streams = (ctypes.c_void_p * count)(), [self._stream(o) for _ in prompts]
        try:
            self.lib.call("streams_open", self.handle, texts, lengths, count, o, handles)
            for stream, handle in zip(streams, handles, strict=True):
                stream._handle.value = handle
        except BaseException:
            for handle in filter(None, handles):  # an interrupt; closing what is closed does nothing
                self.lib.stream_close(handle)
            raise
        del keep
        return streams

    def ready(self, streams: Sequence[NativeStream], wait: int) -> int | None:
        """Waits for a stream that has something to read: its place, the number of streams if all are at their end,
        None if the time is over."""
        handles = (ctypes.c_void_p * len(streams))(*(s.handle for s in streams))
        index = ctypes.c_size_t()
        status = self.lib.call("streams_wait", handles, len(streams), wait, ctypes.byref(index))
        return None if status == c.TIMEOUT else index.value

    def session(self) -> NativeSession:
        return NativeSession(self.lib, self)


class NativeJob(Owner):
    """Something long: a download, a check, a training, a log."""

    kind = "job"

    def __init__(self, lib: c.Library, name: str, *arguments: Any) -> None:
        super().__init__(lib, "job_close")
        self.open(name, *arguments)
        self._buffer = ctypes.create_string_buffer(8192)

    def read(self, wait: int, most: int = 64) -> list[tuple[str, int]]:
        """The next records, as JSON with the number of the finish: 0 if more may come."""
        records: list[tuple[str, int]] = []
        length, finish = ctypes.c_size_t(), ctypes.c_int32()
        while len(records) < most:
            now = 0 if records else wait
            status = self.lib.call(
                "job_next",
                self.handle,
                now,
                self._buffer,
                len(self._buffer),
                ctypes.byref(length),
                ctypes.byref(finish),
            )
            if status == c.BUFFER_TOO_SMALL:
                self._buffer = ctypes.create_string_buffer(length.value)
                continue
            if status == c.TIMEOUT:
                break
            text = ctypes.string_at(self._buffer, length.value).decode(errors="replace")
            records.append((text, finish.value))
            if finish.value:
                break
        return records

    def cancel(self) -> None:
        if self._close.alive:
            self.lib.job_cancel(self._handle.value)


class Native:
    """The library in this process."""

    def __init__(self) -> None:
        self.lib = c.library()

    def model(self, path: str, options: dict[str, Any]) -> NativeModel:
        return NativeModel(self.lib, path, options)

    def system_info(self) -> dict[str, Any]:
        return dict(json.loads(self.lib.text("system_info")))

    def get(self, key: str) -> str:
        return self.lib.text("get", key.encode()).decode(errors="replace")

    def set(self, key: str, value: str | None) -> None:
        self.lib.call("set", key.encode(), None if value is None else os.fsencode(value))

    def zoo(self, options: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads(self.lib.text("zoo_list", zoo_options(self.lib, options))))

    def resolve(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads(self.lib.text("zoo_resolve", path_bytes("name", name), zoo_options(self.lib, options))))

    def remove(self, name: str, options: dict[str, Any]) -> int:
        freed = ctypes.c_uint64()
        self.lib.call("zoo_remove", path_bytes("name", name), zoo_options(self.lib, options), ctypes.byref(freed))
        return freed.value

    def download(self, name: str, options: dict[str, Any]) -> NativeJob:
        return NativeJob(self.lib, "download_open", path_bytes("name", name), zoo_options(self.lib, options))

    def verify(self, name: str, options: dict[str, Any]) -> NativeJob:
        return NativeJob(self.lib, "verify_open", path_bytes("name", name), zoo_options(self.lib, options))

    def train(self, config: str, overrides: Sequence[str], resume: str) -> NativeJob:
        texts, _, count = c_texts(overrides)
        path, where = path_bytes("path", config), path_bytes("checkpoint", resume)
        return NativeJob(self.lib, "train_open", path, texts, count, where)

    def log(self, level: str | None) -> NativeJob:
        return NativeJob(self.lib, "log_open", None if level is None else level.encode())


def c_texts(texts: Sequence[str]) -> tuple[Any, Any, int]:
    """Texts for C: pointers, lengths, count. They are kept by the pointers."""
    data = [t.encode() for t in texts]
    n = len(data)
    return (ctypes.c_char_p * n)(*data), (ctypes.c_size_t * n)(*map(len, data)), n


def c_messages(messages: Sequence[Sequence[str]], template: str | None) -> tuple[Any, ...]:
    """Messages, pairs of role and content, and a template for C."""
    roles, _, count = c_texts([m[0] for m in messages])
    contents, lengths, _ = c_texts([m[1] for m in messages])
    return roles, contents, lengths, count, None if template is None else template.encode()


def c_options(lib: c.Library, options: dict[str, Any]) -> tuple[c.GenerateOptions, list[object]]:
    """Options that _options.normalise has made, for C, and what they point to."""
    o = c.GenerateOptions()
    lib.generate_options_init(o, ctypes.sizeof(o))
    keep: list[object] = []
    for name, value in options.items():
        if name == "stops":
            texts, lengths, count = c_texts(value)
            o.stops, o.stop_lengths, o.stop_count = texts, lengths, count
            keep += [texts, lengths]
        elif name == "bias":
            ids = (ctypes.c_int32 * len(value))(*(i for i, _ in value))
            values = (ctypes.c_float * len(value))(*(v for _, v in value))
            o.bias_ids, o.bias_values, o.bias_count = ids, values, len(value)
            keep += [ids, values]
        else:
            setattr(o, name, value)
    return o, keep


def zoo_options(lib: c.Library, options: dict[str, Any]) -> c.ZooOptions:
    """Where models are, for C: cache, endpoint, token, url, sha256, force, offline."""
    o = c.ZooOptions()
    lib.zoo_options_init(o, ctypes.sizeof(o))
    for name in ("cache", "endpoint", "token", "url", "sha256"):
        if (value := options.get(name)) is not None:
            setattr(o, name, path_bytes(name, value))
    o.flags = c.ZOO_FORCE * bool(options.get("force")) | c.ZOO_OFFLINE * bool(options.get("offline"))
    return o
