"""The engine in a process of its own: the methods of _native through a socket."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
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
    """Something asked, and its answer when it is here."""

    def __init__(self, target: int, method: str, args: Any) -> None:
        self.target, self.method, self.args = target, method, args
        self.message: dict[str, Any] = {}
        self.sent = self.abandoned = False
        self._latch = threading.Lock()  # of an Event, an interrupt may leave the lock in any state
        self._latch.acquire()

    def arrive(self, message: dict[str, Any]) -> None:
        self.message = message
        with contextlib.suppress(RuntimeError):  # it is there already
            self._latch.release()

    def wait(self) -> dict[str, Any]:
        """The answer. An interrupt may end the waiting; it can be done again."""
        while not self.message:
            self._latch.acquire(timeout=0.5)
        return self.message


class Connection:
    """The process, and what is asked of it. Any thread may ask. Two threads of its own write and read: an interrupt
    of the one that asks never cuts a frame in two."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._outgoing: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._pending: dict[int, Reply] = {}
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
        for work in (self._listen, self._speak):
            threading.Thread(target=work, name="nanochat-isolated", daemon=True).start()

    def _speak(self) -> None:
        last = 0
        while (reply := self._outgoing.get()) is not None:
            if reply.sent:
                continue  # it was posted twice
            last += 1
            with self._lock:
                reply.sent = True
                if not self._shut:
                    self._pending[last] = reply
            message = {"id": last, "object": reply.target, "method": reply.method, "args": reply.args}
            try:
                if not self._shut:
                    _wire.write(self._socket, message)
            except OSError:
                self._shut = True
            if self._shut:
                with self._lock:
                    self._pending.pop(last, None)
                if not reply.message:
                    reply.arrive({"died": True})

    def _listen(self) -> None:
        while (message := _wire.read(self._socket)) is not None:
            with self._lock:
                reply = self._pending.pop(message["id"], None)
            if reply is None:
                continue
            reply.arrive(message)
            if reply.abandoned:
                self._discard(message)
        with self._lock:
            self._shut = True
            waiting, self._pending = self._pending, {}
        for reply in waiting.values():
            reply.arrive({"died": True})

    def _discard(self, message: dict[str, Any]) -> None:
        """Closes what an answer that nobody waits for has made."""

        def forget(reference: dict[str, Any]) -> None:
            self.post(self.ask(reference["$object"], "close"))

        _wire.unpack(message.get("result"), forget)

    def ask(self, target: int, method: str, *args: Any) -> Reply:
        """Something to be posted."""
        if os.getpid() != self._owner:
            raise ForkedError(
                "the model was opened before this process was forked; its engine belongs to the other process",
                hint="load the model again here, with isolate=True",
            )
        return Reply(target, method, _wire.pack(list(args), lambda o: {"$object": o.number}))

    def post(self, reply: Reply) -> None:
        """Sends it; again does nothing."""
        self._outgoing.put(reply)

    def wait(self, reply: Reply) -> Any:
        """The answer to what is posted here. It can be awaited again after an interrupt."""
        if not reply.sent:
            self.post(reply)
        message = reply.wait()
        if "died" in message:
            raise self._died()
        if "error" in message:
            raise _wire.unpack_error(message["error"])
        return _wire.unpack(message.get("result"), self._object)

    def call(self, target: int, method: str, *args: Any) -> Any:
        """Asks and waits."""
        reply = self.ask(target, method, *args)
        try:
            return self.wait(reply)
        except Exception:
            raise
        except BaseException:  # an interrupt: what the answer makes is not wanted any more
            reply.abandoned = True
            if reply.message:
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
            self.post(self.ask(number, "close"))
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
            self._outgoing.put(None)
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
            self._connection.post(self._connection.ask(self._number, "cancel"))


class RemoteStream(RemoteObject):
    kind = "stream"
    _asked: Reply | None = None
    _place = 0

    def read(self, steps: list[Any], wait: int, most: int = 1) -> None:
        """As in _native. An answer that an interrupt kept from being awaited is not lost."""
        number = self.number
        if self._place != len(steps):
            self._asked = None  # its answer is in steps
        if self._asked is None:
            self._place = len(steps)
            self._asked = self._connection.ask(number, "read", wait, most)
        try:
            result = self._connection.wait(self._asked)
        except Exception:
            self._asked = None
            raise
        steps.extend(result)
        self._asked = None

    def stats(self) -> dict[str, int]:
        return dict(self._call("stats"))

    def embedding(self) -> bytes:
        return bytes(self._call("embedding"))


class RemoteJob(RemoteObject):
    kind = "job"

    def read(self, wait: int, most: int = 64) -> list[Any]:
        return list(self._call("read", wait, most))


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
