"""Exceptions. Every one is a NanochatError; where Python has a class for the same thing, it is that too."""

from __future__ import annotations

from typing import Any

__all__ = [
    "AbiMismatchError",
    "BusyError",
    "CancelledError",
    "ChecksumError",
    "ClosedError",
    "ContextOverflowError",
    "ForkedError",
    "GenerationTimeoutError",
    "InternalError",
    "InvalidArgumentError",
    "LibraryNotFoundError",
    "ModelCollapseError",
    "ModelFormatError",
    "ModelIOError",
    "ModelNotFoundError",
    "ModelNotPublishedError",
    "NanochatError",
    "NetworkError",
    "NotFoundError",
    "OfflineError",
    "OutOfMemoryError",
    "ServerError",
    "TrainingDivergedError",
    "UnsupportedError",
    "WorkerDiedError",
]


class NanochatError(Exception):
    """What went wrong, in one line, and what to do about it."""

    code: int = 99
    """The status of the C interface (NANOCHAT_E_*)."""

    hint: str | None
    """What to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or None

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        more = {k: v for k, v in vars(self).items() if k not in ("message", "hint", "__notes__")}
        return _restore, (type(self), self.message, self.hint, more)


def _restore(cls: type[NanochatError], message: str, hint: str | None, more: dict[str, Any]) -> NanochatError:
    error = cls(message, hint=hint)
    vars(error).update(more)
    return error


class InvalidArgumentError(NanochatError, ValueError):
    """An argument or option is out of range."""

    code = 1


class NotFoundError(NanochatError, FileNotFoundError):
    """There is no such file: a configuration, a checkpoint, data."""

    code = 2


class ModelNotFoundError(NotFoundError):
    """There is no such model. What was asked for, what is near and where it was searched are attributes."""

    code = 2

    name: str = ""
    near: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()


class ModelNotPublishedError(ModelNotFoundError):
    """The model is announced; there is no file of it yet."""

    code = 18


class ModelFormatError(NanochatError, ValueError):
    """The file is damaged, or no model that runs here."""

    code = 3


class ChecksumError(NanochatError, ValueError):
    """The contents are not those that were promised."""

    code = 4


class ModelIOError(NanochatError, OSError):
    """The file cannot be read or written."""

    code = 5


class OutOfMemoryError(NanochatError, MemoryError):
    """The system has no memory for it."""

    code = 6


class CancelledError(NanochatError):
    """The stream or job was cancelled."""

    code = 7


class GenerationTimeoutError(NanochatError, TimeoutError):
    """The time of the option timeout is over. The attribute completion is the answer so far."""

    code = 8

    completion: Any = None


class BusyError(NanochatError):
    """Another thread reads the stream, the session has a stream, or too many streams wait."""

    code = 9


class ClosedError(NanochatError, ValueError):
    """The model, session or stream was closed."""

    code = 10


class ContextOverflowError(NanochatError, ValueError):
    """The prompt does not fit; it is never cut."""

    code = 12


class ForkedError(NanochatError, RuntimeError):
    """The library was loaded, or the model opened, before this process was forked."""

    code = 13


class UnsupportedError(NanochatError, NotImplementedError):
    """This model or this build cannot do it."""

    code = 14


class OfflineError(NanochatError, ConnectionError):
    """Only the network has it, and the network is switched off."""

    code = 15


class TrainingDivergedError(NanochatError, ArithmeticError):
    """A training stopped because too many steps in a row went wrong."""

    code = 16

    step: int | None = None
    """The last step, and its loss (NaN where it was not finite)."""
    loss: float | None = None


class ModelCollapseError(TrainingDivergedError):
    """A training stopped after its predictions or its residual streams had become all alike."""

    entropy: float | None = None
    """Entropy of the last predictions, in nats."""


class NetworkError(NanochatError, ConnectionError):
    """A server cannot be reached, refuses, or does not answer as it should."""

    code = 17


class InternalError(NanochatError, RuntimeError):
    """A defect of the library, which was contained. Please report it."""

    code = 99


class WorkerDiedError(NanochatError, RuntimeError):
    """The process of a model with isolate=True has ended. Its models are lost; this process is not affected."""

    code = 99


class ServerError(NanochatError, RuntimeError):
    """The server did not start."""

    code = 99


class LibraryNotFoundError(NanochatError, ImportError):
    """libnanochat.so cannot be loaded."""

    code = 2


class AbiMismatchError(NanochatError, ImportError):
    """libnanochat.so has another version of the interface than this package."""

    code = 1


BY_CODE: dict[int, type[NanochatError]] = {
    c.code: c
    for c in (
        InvalidArgumentError,
        ModelNotFoundError,
        ModelFormatError,
        ChecksumError,
        ModelIOError,
        OutOfMemoryError,
        CancelledError,
        GenerationTimeoutError,
        BusyError,
        ClosedError,
        ContextOverflowError,
        ForkedError,
        UnsupportedError,
        OfflineError,
        TrainingDivergedError,
        NetworkError,
        ModelNotPublishedError,
        InternalError,
    )
}
