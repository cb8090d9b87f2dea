"""The C interface, include/nanochat.h, through ctypes. The library is loaded at the first call."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from nanochat.errors import BY_CODE, AbiMismatchError, ForkedError, InternalError, LibraryNotFoundError

ABI_VERSION = 1
OK, TIMEOUT, BUFFER_TOO_SMALL, FORKED = 0, 8, 11, 13

MODEL_PIN, MODEL_KV_INT8, MODEL_NO_HUGE_PAGES = 1, 2, 4
TOKENIZE_PROMPT, TOKENIZE_SPECIAL = 2, 4
DETOKENIZE_PLAIN = 1
GENERATE_IGNORE_END, GENERATE_SPECIAL, GENERATE_LOGPROBS, GENERATE_ECHO = 1, 2, 4, 8
GENERATE_LOGITS, GENERATE_EMBEDDING, GENERATE_PROMPT_ONLY = 16, 32, 64
PIECE_ECHO = 1
ZOO_FORCE, ZOO_OFFLINE = 1, 2
FINISH = {1: "stop", 2: "length", 3: "cancelled", 4: "error"}


class ModelOptions(ctypes.Structure):
    """nanochat_model_options."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("threads", c_uint32),
        ("context", c_uint32),
        ("batch", c_uint32),
        ("speculate", c_uint32),
        ("kernel", c_char_p),
        ("device", c_char_p),
    )


class GenerateOptions(ctypes.Structure):
    """nanochat_generate_options."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("max_tokens", c_uint32),
        ("top_k", c_uint32),
        ("temperature", c_double),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repeat_penalty", c_double),
        ("presence_penalty", c_double),
        ("frequency_penalty", c_double),
        ("seed", c_uint64),
        ("penalty_window", c_uint32),
        ("top_logprobs", c_uint32),
        ("stops", POINTER(c_char_p)),
        ("stop_lengths", POINTER(c_size_t)),
        ("stop_count", c_size_t),
        ("bias_ids", POINTER(c_int32)),
        ("bias_values", POINTER(c_float)),
        ("bias_count", c_size_t),
    )


class Piece(ctypes.Structure):
    """nanochat_piece."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("token", c_int32),
        ("finish", c_int32),
        ("logprob", c_float),
        ("length", c_uint64),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    )


class Stats(ctypes.Structure):
    """nanochat_stats."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("finish", c_int32),
        ("prompt_tokens", c_uint64),
        ("cached_tokens", c_uint64),
        ("generated_tokens", c_uint64),
        ("drafted_tokens", c_uint64),
        ("accepted_tokens", c_uint64),
        ("queued_ns", c_uint64),
        ("prefill_ns", c_uint64),
        ("decode_ns", c_uint64),
    )


class ZooOptions(ctypes.Structure):
    """nanochat_zoo_options."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("cache", c_char_p),
        ("endpoint", c_char_p),
        ("token", c_char_p),
        ("url", c_char_p),
        ("sha256", c_char_p),
    )


_handle, _err, _size = c_void_p, POINTER(c_void_p), POINTER(c_size_t)
_out, _texts, _generate, _zoo = POINTER(c_void_p), POINTER(c_char_p), POINTER(GenerateOptions), POINTER(ZooOptions)

# The functions used here: result and arguments.
PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "abi_version": (c_uint32, []),
    "version": (c_char_p, []),
    "error_message": (c_char_p, [_handle]),
    "error_hint": (c_char_p, [_handle]),
    "error_free": (None, [_handle]),
    "system_info": (c_int32, [c_void_p, c_size_t, _size, _err]),
    "model_options_init": (None, [POINTER(ModelOptions), c_size_t]),
    "model_open": (c_int32, [c_char_p, POINTER(ModelOptions), POINTER(_handle), _err]),
    "model_info": (c_int32, [_handle, c_void_p, c_size_t, _size, _err]),
    "model_close": (c_int32, [_handle]),
    "tokenize": (c_int32, [_handle, c_char_p, c_size_t, c_uint32, c_void_p, c_size_t, _size, _err]),
    "detokenize": (c_int32, [_handle, c_void_p, c_size_t, c_uint32, c_void_p, c_size_t, _size, _err]),
    "generate_options_init": (None, [_generate, c_size_t]),
    "stream_open": (c_int32, [_handle, c_char_p, c_size_t, _generate, _out, _err]),
    "stream_open_tokens": (c_int32, [_handle, c_void_p, c_size_t, _generate, _out, _err]),
    "fim_open": (c_int32, [_handle, c_char_p, c_size_t, c_char_p, c_size_t, _generate, _out, _err]),
    "chat_open": (
        c_int32,
        [_handle, _handle, _texts, _texts, POINTER(c_size_t), c_size_t, c_char_p, _generate, _out, _err],
    ),
    "chat_tokens": (
        c_int32,
        [_handle, _texts, _texts, POINTER(c_size_t), c_size_t, c_char_p, c_void_p, c_size_t, _size, _err],
    ),
    "streams_open": (c_int32, [_handle, _texts, POINTER(c_size_t), c_size_t, _generate, c_void_p, _err]),
    "streams_wait": (c_int32, [c_void_p, c_size_t, c_uint32, _size, _err]),
    "piece_init": (None, [POINTER(Piece), c_size_t]),
    "stream_next": (c_int32, [_handle, c_uint32, c_void_p, c_size_t, POINTER(Piece), _err]),
    "stream_top": (c_int32, [_handle, c_void_p, c_void_p, c_size_t, _size, _err]),
    "stream_logits": (c_int32, [_handle, c_void_p, c_size_t, _size, _err]),
    "stream_embedding": (c_int32, [_handle, c_void_p, c_size_t, _size, _err]),
    "stats_init": (None, [POINTER(Stats), c_size_t]),
    "stream_stats": (c_int32, [_handle, POINTER(Stats), _err]),
    "stream_cancel": (c_int32, [_handle]),
    "stream_close": (c_int32, [_handle]),
    "session_open": (c_int32, [_handle, _out, _err]),
    "session_stream": (c_int32, [_handle, c_char_p, c_size_t, _generate, _out, _err]),
    "session_tokens": (c_int32, [_handle, c_void_p, c_size_t, _size, _err]),
    "session_truncate": (c_int32, [_handle, c_size_t, _err]),
    "session_close": (c_int32, [_handle]),
    "set": (c_int32, [c_char_p, c_char_p, _err]),
    "get": (c_int32, [c_char_p, c_void_p, c_size_t, _size, _err]),
    "zoo_options_init": (None, [_zoo, c_size_t]),
    "zoo_list": (c_int32, [_zoo, c_void_p, c_size_t, _size, _err]),
    "zoo_resolve": (c_int32, [c_char_p, _zoo, c_void_p, c_size_t, _size, _err]),
    "zoo_remove": (c_int32, [c_char_p, _zoo, POINTER(c_uint64), _err]),
    "download_open": (c_int32, [c_char_p, _zoo, _out, _err]),
    "verify_open": (c_int32, [c_char_p, _zoo, _out, _err]),
    "train_open": (c_int32, [c_char_p, _texts, c_size_t, c_char_p, _out, _err]),
    "log_open": (c_int32, [c_char_p, _out, _err]),
    "job_next": (c_int32, [_handle, c_uint32, c_void_p, c_size_t, _size, POINTER(c_int32), _err]),
    "job_cancel": (c_int32, [_handle]),
    "job_close": (c_int32, [_handle]),
}


class Library:
    """The functions of the header, without their prefix."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.forked = False
        cdll = ctypes.CDLL(path)  # releases the interpreter during calls
        for name, (result, arguments) in PROTOTYPES.items():
            try:
                function = getattr(cdll, "nanochat_" + name)
            except AttributeError:
                raise AbiMismatchError(
                    f"{path} has no nanochat_{name}", hint="install the library that this package came with"
                ) from None
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if (abi := self.abi_version()) != ABI_VERSION:
            raise AbiMismatchError(
                f"{path} has version {abi} of the interface, this package needs {ABI_VERSION}",
                hint="install the library that this package came with",
            )

    def __getattr__(self, name: str) -> Callable[..., Any]:  # for type checkers: __init__ sets them all
        raise AttributeError(name)

    def call(self, name: str, *arguments: Any) -> int:
        """Calls a function whose last argument is an error object, and raises what it fails with. A timeout and
        a buffer that is too small are returned."""
        if self.forked:
            raise_status(FORKED, "", "")
        err = c_void_p()
        status: int = getattr(self, name)(*arguments, ctypes.byref(err))
        if status in (OK, TIMEOUT):
            return status
        message, hint = "", ""
        if err.value:
            message = self.error_message(err).decode()
            hint = self.error_hint(err).decode()
            self.error_free(err)
        if status != BUFFER_TOO_SMALL:
            raise_status(status, message, hint)
        return status

    def text(self, name: str, *arguments: Any) -> bytes:
        """Calls a function that returns bytes to a buffer."""
        capacity, length = 4096, c_size_t()
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            if self.call(name, *arguments, buffer, capacity, ctypes.byref(length)) == OK:
                return buffer.raw[: length.value]
            capacity = length.value

    def ids(self, name: str, *arguments: Any, capacity: int = 1024) -> list[int]:
        """Calls a function that returns token ids to a buffer."""
        count = c_size_t()
        while True:
            ids = (c_int32 * capacity)()
            if self.call(name, *arguments, ids, capacity, ctypes.byref(count)) == OK:
                return ids[: count.value]
            capacity = count.value

    def floats(self, name: str, *arguments: Any, capacity: int) -> bytes:
        """Calls a function that returns floats to a buffer: their bytes."""
        count = c_size_t()
        while True:
            values = (c_float * capacity)()
            if self.call(name, *arguments, values, capacity, ctypes.byref(count)) == OK:
                return bytes(memoryview(values).cast("B")[: 4 * count.value])
            capacity = count.value


def raise_status(status: int, message: str, hint: str) -> None:
    """Raises the exception of a status."""
    if status == FORKED:
        message = "the library was loaded before this process was forked; objects from before the fork do not work here"
        hint = 'use multiprocessing.get_context("spawn"), or load the model after the fork'
        raise ForkedError(message, hint=hint)
    raise BY_CODE.get(status, InternalError)(message or f"status {status}", hint=hint)


def candidates() -> list[str]:
    """Where the library may be: NANOCHAT_LIBRARY, this package, the source tree, the system."""
    if extension := sys.modules.get("nanochat_gopy._introspect"):  # it has the interface; one Go runtime per process
        return [str(extension.__file__)]
    if named := os.environ.get("NANOCHAT_LIBRARY"):
        return [named]
    here = Path(__file__).resolve().parent
    places = [here / "lib" / "libnanochat.so", here.parents[1] / "build" / "lib" / "libnanochat.so"]
    return [str(p) for p in places if p.exists()] + ["libnanochat.so.1"]


_lock = threading.Lock()
_loaded: Library | None = None


def library() -> Library:
    """The library, loaded once."""
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = load()
                os.register_at_fork(after_in_child=_mark)
    return _loaded


def _mark() -> None:
    """In the child of a fork: the threads of the library are not there any more, so that nothing may be called."""
    if _loaded is not None:
        _loaded.forked = True


def load() -> Library:
    """Loads the library."""
    if not sys.platform.startswith("linux"):
        raise LibraryNotFoundError(f"nanochat runs on Linux, not on {sys.platform}")
    reasons = []
    for path in candidates():
        try:
            return Library(path)
        except OSError as e:
            reasons.append(str(e))
    hint = "reinstall the package, run `make build` in the source tree, or set NANOCHAT_LIBRARY"
    if any("TLS" in r or "musl" in r for r in reasons):
        hint = "this system's C library is musl, which cannot load a Go library: use a glibc system or image"
    raise LibraryNotFoundError("libnanochat.so cannot be loaded: " + "; ".join(reasons), hint=hint)
