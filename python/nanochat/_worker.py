"""The process of an engine that was loaded with isolate=True: it does what comes through a socket, and ends when the
other side does."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nanochat import _native, _wire
from nanochat.errors import ClosedError, InvalidArgumentError

# What may be called, by class.
_CLASSES = (
    _native.Native,
    _native.NativeModel,
    _native.NativeStream,
    _native.NativeSession,
    _native.NativeJob,
)


_NONE: _native.Step = ("", -1, 0, None, False, [], None)


class Worker:
    """Objects by number, and the requests about them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()  # of the table and of what is sent
        self._objects: dict[int, Any] = {}
        self._last = 0
        self._pool = ThreadPoolExecutor(64)

    def run(self) -> None:
        """Serves until the connection ends."""
        while (request := _wire.read(self._connection)) is not None:
            if request["method"] == "cancel":  # must not wait for its turn
                self._serve(request)
            else:
                self._pool.submit(self._serve, request)

    def _serve(self, request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": request["id"]}
        try:
            answer["result"] = _wire.pack(self._call(request), self._reference)
        except BaseException as e:
            answer["error"] = _wire.pack_error(e)
        try:
            with self._lock:
                _wire.write(self._connection, answer)
        except OSError:
            leave()

    def _call(self, request: dict[str, Any]) -> Any:
        method = request["method"]
        target = self._object({"$object": request["object"]})
        if method.startswith("_") or not callable(getattr(type(target), method, None)):
            raise InvalidArgumentError(f"there is no method {method}")
        args = _wire.unpack(request["args"], self._object)
        if method == "read" and isinstance(target, _native.NativeStream):
            steps: list[_native.Step] = target.__dict__.setdefault("steps", [])
            begin = len(steps)
            target.read(steps, *args)
            new = steps[begin:]
            steps[begin:] = [_NONE] * len(new)  # only their number is needed
            return new
        result = getattr(target, method)(*args)
        if method == "close":
            with self._lock:
                self._objects.pop(request["object"], None)
        return result

    def _object(self, reference: dict[str, Any]) -> Any:
        number = reference["$object"]
        with self._lock:
            if number == 0 and 0 not in self._objects:
                self._objects[0] = _native.Native()  # loads the library
            try:
                return self._objects[number]
            except KeyError:
                raise ClosedError("it was closed") from None

    def _reference(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, _CLASSES):
            raise TypeError(f"{type(value).__name__} cannot be sent")
        with self._lock:
            self._last += 1
            self._objects[self._last] = value
            return {"$object": self._last, "kind": type(value).__name__}


def leave() -> None:
    """Ends the process at once: whatever is computed, nobody waits for it."""
    os._exit(0)


def watch(parent: int) -> None:
    """Ends the process when its parent did, even if a copy of the other end of the connection lives on."""
    while os.getppid() == parent:
        time.sleep(1)
    leave()


def main() -> None:
    """Runs with the number of an inherited socket and the id of the parent process as arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other side
    connection = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=watch, args=(int(sys.argv[2]),), daemon=True).start()
    try:
        Worker(connection).run()
    finally:
        leave()


if __name__ == "__main__":
    main()
