"""How a process speaks with the process of its engine: frames of a length (4 bytes, the highest first) and JSON.

A request is {"id", "object", "method", "args"}, an answer {"id", "result"} or {"id", "error"}; object 0 is the library.
Bytes travel as {"$bytes": base64}, objects as {"$object": number, "kind": class}, dictionaries that would look like
these as {"$dict": [[key, value], ...]}.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

from nanochat import errors

# Longest frame, in bytes: a row of logits for each token of a long prompt fits.
MOST = 1 << 31


def pack(value: Any, reference: Callable[[Any], dict[str, Any]]) -> Any:
    """A value for JSON; reference writes the objects."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return [pack(v, reference) for v in value]
    if isinstance(value, dict):
        if any(str(k).startswith("$") for k in value):
            return {"$dict": [[k, pack(v, reference)] for k, v in value.items()]}
        return {k: pack(v, reference) for k, v in value.items()}
    return reference(value)


def unpack(value: Any, object_of: Callable[[dict[str, Any]], Any]) -> Any:
    """The value of some JSON; object_of finds the objects."""
    if isinstance(value, list):
        return [unpack(v, object_of) for v in value]
    if isinstance(value, dict):
        if "$bytes" in value:
            return base64.b64decode(value["$bytes"])
        if "$object" in value:
            return object_of(value)
        if "$dict" in value:
            return {k: unpack(v, object_of) for k, v in value["$dict"]}
        return {k: unpack(v, object_of) for k, v in value.items()}
    return value


def write(s: socket.socket, message: dict[str, Any]) -> None:
    """Sends a frame. Callers take turns."""
    body = json.dumps(message, separators=(",", ":")).encode()
    s.sendall(struct.pack(">I", len(body)) + body)


def read(s: socket.socket) -> dict[str, Any] | None:
    """The next frame; None at the end of the connection."""
    head = _exactly(s, 4)
    if head is None:
        return None
    (length,) = struct.unpack(">I", head)
    body = _exactly(s, length) if length <= MOST else None
    return None if body is None else dict(json.loads(body))


def _exactly(s: socket.socket, n: int) -> bytes | None:
    parts: list[bytes] = []
    while n:
        try:
            part = s.recv(min(n, 1 << 20))
        except OSError:
            return None
        if not part:
            return None
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def pack_error(e: BaseException) -> dict[str, Any]:
    """An exception for JSON."""
    if isinstance(e, errors.NanochatError):
        return {"type": type(e).__name__, "message": e.message, "hint": e.hint}
    return {"type": type(e).__name__, "message": str(e), "hint": None}


def unpack_error(e: dict[str, Any]) -> Exception:
    """The exception of some JSON."""
    kind = getattr(errors, e["type"], None)
    if isinstance(kind, type) and issubclass(kind, errors.NanochatError):
        return kind(e["message"], hint=e["hint"])
    if e["type"] in ("ValueError", "UnicodeEncodeError", "TypeError", "OverflowError"):
        return (TypeError if e["type"] == "TypeError" else ValueError)(e["message"])
    return errors.InternalError(f"{e['type']} in the process of the engine: {e['message']}")
