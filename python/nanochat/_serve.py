"""The server of the command line program, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from html import escape

from nanochat import _command, _settings
from nanochat._context import Context
from nanochat.errors import ServerError

_LISTENING = re.compile(r"\blistening on (?P<url>https?://\S+)")


class Server(Context):
    """A running server. serve() makes it; it ends with stop(), with a with statement, or when nothing refers to it any
    more."""

    url: str
    """Where it listens, as "http://127.0.0.1:8080"."""

    def __init__(self, command: Sequence[str | os.PathLike[str]], ready: float) -> None:
        self.log: deque[str] = deque(maxlen=1000)
        """The last lines of its standard error."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this program
            env={**os.environ, **_settings.environment(), "NO_COLOR": "1"},
        )
        self._close = weakref.finalize(self, _end, self._process, 10.0)
        found: list[str] = []
        listening = threading.Event()
        reader = threading.Thread(
            target=_read, args=(self._process, self.log, found, listening), name="nanochat-server", daemon=True
        )
        reader.start()
        try:
            deadline = time.monotonic() + ready
            while not listening.wait(0.05):
                if time.monotonic() > deadline:
                    raise ServerError(
                        self._why(f"the server is not ready after {ready:.0f} s"), hint="raise ready, or see its log"
                    )
            if not found:  # its standard error has ended
                status = self._process.wait(ready)
                raise ServerError(self._why(f"the server ended with status {status}"))
        except BaseException:
            self._close()
            raise
        self.url = found[0]

    def _why(self, what: str) -> str:
        return "\n  ".join([what, *list(self.log)[-5:]])

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self, timeout: float = 35.0) -> int:
        """Lets requests end (at most 30 s), and ends the server. Returns its exit status."""
        self._close.detach()
        return _end(self._process, timeout)

    def _leave(self) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server {self.url}{'' if self.running else ', stopped'}>"

    def _repr_html_(self) -> str:
        link = escape(self.url, quote=True)
        state = "running" if self.running else "stopped"
        return f'<div style="text-align:left"><a href="{link}">{link}</a> · {state} · process {self.pid}</div>'


def _read(process: subprocess.Popen[bytes], log: deque[str], found: list[str], listening: threading.Event) -> None:
    """Keeps the pipe empty, and finds the line that says where the server listens."""
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            log.append(text)
            if not found and (m := _LISTENING.search(text)):
                found.append(m["url"].rstrip('",'))
                listening.set()
    listening.set()


def _end(process: subprocess.Popen[bytes], timeout: float) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def serve(
    model: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    parallel: int | None = None,
    queue: int | None = None,
    context: int | None = None,
    api_key_file: str | os.PathLike[str] | None = None,
    args: Sequence[str] = (),
    ready: float = 60.0,
) -> Server:
    """Starts `nanochat serve` for one or several models (default: the one that comes with the package), and returns
    when it takes requests. It speaks the protocol of OpenAI: server.url + "/v1" is the base address for clients.

    port 0 takes a free one. parallel: answers at the same time; queue: requests that wait; args: more arguments of the
    command; ready: seconds until it must listen.
    """
    models = [model] if isinstance(model, str | os.PathLike) else list(model)
    command: list[str | os.PathLike[str]] = [_command.program(), "serve", *models, "--addr", f"{host}:{port}"]
    for flag, value in (("parallel", parallel), ("queue", queue), ("context", context), ("api-key-file", api_key_file)):
        if value is not None:
            command += [f"--{flag}", os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    return Server([*command, *args], ready)
