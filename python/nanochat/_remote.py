"""The engine in a process of its own: the methods of _native through a socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat import _settings, _wire
from nanochat.errors import ClosedError, ForkedError, WorkerDiedError

# Not -m: the directory of the program must not hide modules of the standard library.
_PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop()); from nanochat._worker import main; main()"

_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child of a fork: without these ends the process of an engine notices that its parent has ended."""
    for connection in list(_connections):
        connection.drop()


os.register_at_fork(after_in_child=_after_fork)


class Reply:
    """An answer that is awaited."""

    def __init__(self) -> None:
        self.here = threading.Event()
        self.message: dict[str, Any] = {}
        self.abandoned = False


class Connection:
    """The process, and what is asked of it. Any thread may ask; one of its own reads the answers."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._pending: dict[int, Reply] = {}
        self._last = 0
        self._live: set[int] = set()
        self._leaving = self._shut = False
        self._socket, theirs = socket.socketpair()
        package = str(Path(__file__).resolve().parents[1])
        with theirs:
            command = [
                sys.executable or "python3",
                "-I",
                "-c",
                _PROGRAM,
                str(theirs.fileno()),
                str(os.getpid()),
                package,
            ]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        _connections.add(self)
        threading.Thread(target=self._listen, name="nanochat-replies", daemon=True).start()

    def _listen(self) -> None:
        while (message := _wire.read(self._socket)) is not None:
            with self._lock:
                reply = self._pending.pop(message["id"], None)
            if reply is None:
                continue
            reply.message = message
            if reply.abandoned:
                self._discard(message)
            reply.here.set()
        with self._lock:
            self._shut = True
            waiting, self._pending = self._pending, {}
        for reply in waiting.values():
            reply.message = {"died": True}
            reply.here.set()

    def _discard(self, message: dict[str, Any]) -> None:
        """Closes what an answer that nobody waits for has made."""

        def forget(reference: dict[str, Any]) -> None:
            self.send(reference["$object"], "close", [])

        _wire.unpack(message.get("result"), forget)

    def send(self, target: int, method: str, args: Sequence[Any]) -> Reply:
        """Asks for something."""
        if os.getpid() != self._owner:
            raise ForkedError(
                "the model was opened before this process was forked; its engine belongs to the other process",
                hint="load the model again here, with isolate=True",
            )
        packed = _wire.pack(list(args), lambda o: {"$object": o.number})
        reply = Reply()
        with self._lock:
            if not self._shut:
                self._last += 1
                self._pending[self._last] = reply
                message = {"id": self._last, "object": target, "method": method, "args": packed}
                try:
                    _wire.write(self._socket, message)
                except OSError:
                    self._shut = True
            if self._shut:
                reply.message = {"died": True}
                reply.here.set()
        return reply

    def wait(self, reply: Reply) -> Any:
        """The answer. It can be awaited again after an interrupt."""
        reply.here.wait()
        message = reply.message
        if "died" in message:
            raise self._died()
        if "error" in message:
            raise _wire.unpack_error(message["error"])
        return _wire.unpack(message.get("result"), self._object)

    def call(self, target: int, method: str, *args: Any) -> Any:
        """Asks and waits."""
        reply = self.send(target, method, args)
        try:
            return self.wait(reply)
        except BaseException:
            if not reply.here.is_set():  # interrupted: what the answer makes is not wanted any more
                reply.abandoned = True
                if reply.here.is_set():
                    self._discard(reply.message)
            raise

    def _object(self, reference: dict[str, Any]) -> RemoteObject:
        number = reference["$object"]
        with self._lock:
            self._live.add(number)
        return _KINDS[reference["kind"]](self, number)

    def _died(self) -> WorkerDiedError:
        try:
            status = self._process.wait(2)
        except subprocess.TimeoutExpired:
            status = 0
        how = f"ended with status {status}"
        if status < 0:
            try:
                how = f"was killed by signal {-status} ({signal.Signals(-status).name})"
            except ValueError:
                how = f"was killed by signal {-status}"
        hint = "load the model again"
        if status == -signal.SIGKILL:
            hint += "; where the system had no more memory, with a smaller context"
        return WorkerDiedError(f"the process of the engine ({self._process.pid}) {how}", hint=hint)

    def forget(self, number: int, leave: bool) -> None:
        """Closes an object; the process ends with the last one after leave."""
        if os.getpid() != self._owner:
            return
        self._leaving |= leave
        with self._lock:
            known = number in self._live
            self._live.discard(number)
        if known:
            self.send(number, "close", [])
        self.end_if_unused()

    def end_if_unused(self, leave: bool = False) -> None:
        self._leaving |= leave
        if os.getpid() != self._owner or not self._leaving:
            return
        with self._lock:
            if self._live:
                return
        self.drop()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def drop(self) -> None:
        """Ends the connection: the other process sees its end."""
        if os.getpid() == self._owner:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._socket.close()


class RemoteObject:
    """Something in the other process. It is closed by close(), or when nothing refers to it any more."""

    kind, last = "object", False

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection, self._number = connection, number
        self._close = weakref.finalize(self, connection.forget, number, self.last)

    @property
    def number(self) -> int:
        if not self._close.alive:
            raise ClosedError(f"the {self.kind} was closed")
        return self._number

    @property
    def closed(self) -> bool:
        return not self._close.alive

    def close(self) -> None:
        self._close()

    def _call(self, method: str, *args: Any) -> Any:
        return self._connection.call(self.number, method, *args)

    def cancel(self) -> None:
        if self._close.alive:
            self._connection.send(self._number, "cancel", [])


class Reader(RemoteObject):
    """A stream or job."""

    _asked: Reply | None = None

    def read(self, wait: int, most: int = 16) -> list[Any]:
        """As in _native. An answer that an interrupt kept from being awaited is not lost."""
        number = self.number
        if self._asked is None:
            self._asked = self._connection.send(number, "read", [wait, most])
        try:
            result = self._connection.wait(self._asked)
        except Exception:
            self._asked = None
            raise
        self._asked = None
        return list(result)


class RemoteStream(Reader):
    kind = "stream"

    def stats(self) -> dict[str, int]:
        return dict(self._call("stats"))

    def embedding(self) -> bytes:
        return bytes(self._call("embedding"))


class RemoteJob(Reader):
    kind = "job"


class RemoteSession(RemoteObject):
    kind = "session"

    def tokens(self) -> list[int]:
        return list(self._call("tokens"))

    def truncate(self, keep: int) -> None:
        self._call("truncate", keep)


class RemoteModel(RemoteObject):
    kind, last = "model", True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args: self._call(name, *args)


_KINDS: dict[str, type[RemoteObject]] = {
    "NativeModel": RemoteModel,
    "NativeStream": RemoteStream,
    "NativeSession": RemoteSession,
    "NativeJob": RemoteJob,
}


class Remote:
    """The library in a process of its own."""

    def __init__(self) -> None:
        self._connection = Connection()
        for key, value in _settings.changed.items():
            self.set(key, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args: self._connection.call(0, name, *args)

    @property
    def pid(self) -> int:
        """The other process."""
        return self._connection._process.pid

    def leave(self) -> None:
        """Ends the process when nothing in it is used any more."""
        self._connection.end_if_unused(True)
