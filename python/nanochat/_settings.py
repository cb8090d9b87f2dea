"""Settings of the library and its log."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any

from nanochat.errors import CancelledError, NanochatError

# What was set here, for the processes of isolated models.
changed: dict[str, str | None] = {}

_KEYS = (
    "cache", "home", "models", "index", "endpoint", "token", "offline", "threads", "kernel", "device", "tune", "log",
    "memory_limit", "gc_percent",
)  # fmt: skip


def environment() -> dict[str, str]:
    """The same for programs."""
    return {f"NANOCHAT_{k.upper()}": v for k, v in changed.items() if v is not None}


class Settings(MutableMapping[str, str]):
    """Settings of the library in this process, before the environment variable NANOCHAT_<KEY> of the same name:
    cache, home, models, index, endpoint, token (write only), offline, threads, kernel, device, tune, log; and
    memory_limit (bytes) and gc_percent of its run time. A value is what counts; del goes back to the environment."""

    def __getitem__(self, key: str) -> str:
        if key not in _KEYS:
            raise KeyError(key)
        return str(_native().get(key))

    def __setitem__(self, key: str, value: object) -> None:
        text = ("1" if value else "0") if isinstance(value, bool) else str(value)
        _native().set(key, text)
        changed[key] = text

    def __delitem__(self, key: str) -> None:
        _native().set(key, None)
        changed.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS)

    def __len__(self) -> int:
        return len(_KEYS)

    def __repr__(self) -> str:
        return f"<Settings: {', '.join(f'{k}={v}' for k, v in self.items() if v) or 'all defaults'}>"


def _native() -> Any:
    from nanochat._native import Native

    return Native()


settings = Settings()

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_lock = threading.Lock()
_log: Any = None


def log(level: str | None = "info") -> None:
    """Sends the log of the library, from a level on (debug, info, warn, error), to the Python logger "nanochat";
    None ends that. Without a call of it the library logs nothing."""
    global _log
    with _lock:
        if _log is not None:
            _log.cancel()
            _log = None
        if level is None:
            return
        logger = logging.getLogger("nanochat")
        job = _native().log("warn" if level == "warning" else level)
        if logger.level == logging.NOTSET:
            logger.setLevel(_LEVELS["warn" if level == "warning" else level])
        _log = job
        threading.Thread(target=_pump, args=(job, logger), name="nanochat-log", daemon=True).start()


def _pump(job: Any, logger: logging.Logger) -> None:
    """Hands lines of the log on until it is cancelled. The logger's handlers may do what they like."""
    try:
        while True:
            for text, finish in job.read(1000):
                record = json.loads(text) if text else {}
                level = _LEVELS.get(str(record.get("level", "info")).lower(), logging.INFO)
                more = {k: v for k, v in record.items() if k not in ("type", "time", "level", "msg")}
                words = " ".join([str(record.get("msg", "")), *(f"{k}={v}" for k, v in more.items())])
                logger.log(level, "%s", words, extra={"nanochat": record})
                if finish:
                    return
    except (CancelledError, NanochatError):
        pass
    finally:
        job.close()
