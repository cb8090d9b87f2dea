"""Exceptions. Every one is a NanochatError; where Python has a class for the same thing, it is that too."""

from __future__ import annotations

__all__ = [
    "AbiMismatchError",
    "BusyError",
    "CancelledError",
    "ClosedError",
    "ContextOverflowError",
    "ForkedError",
    "InternalError",
    "InvalidArgumentError",
    "LibraryNotFoundError",
    "ModelFormatError",
    "ModelIOError",
    "ModelNotFoundError",
    "NanochatError",
    "OutOfMemoryError",
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
        return _restore, (type(self), self.message, self.hint)


def _restore(cls: type[NanochatError], message: str, hint: str | None) -> NanochatError:
    return cls(message, hint=hint)


class InvalidArgumentError(NanochatError, ValueError):
    """An argument or option is out of range."""

    code = 1


class ModelNotFoundError(NanochatError, FileNotFoundError):
    """There is no such model."""

    code = 2


class ModelFormatError(NanochatError, ValueError):
    """The file is damaged, or no model that runs here."""

    code = 3


class ModelIOError(NanochatError, OSError):
    """The file cannot be read."""

    code = 5


class OutOfMemoryError(NanochatError, MemoryError):
    """The system has no memory for it."""

    code = 6


class CancelledError(NanochatError):
    """The stream was cancelled."""

    code = 7


class BusyError(NanochatError):
    """Another thread reads the stream, or too many streams wait."""

    code = 9


class ClosedError(NanochatError, ValueError):
    """The model or stream was closed."""

    code = 10


class ContextOverflowError(NanochatError, ValueError):
    """The prompt does not fit; it is never cut."""

    code = 12


class ForkedError(NanochatError, RuntimeError):
    """The library was loaded before this process was forked."""

    code = 13


class InternalError(NanochatError, RuntimeError):
    """A defect of the library, which was contained. Please report it."""

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
        ModelIOError,
        OutOfMemoryError,
        CancelledError,
        BusyError,
        ClosedError,
        ContextOverflowError,
        ForkedError,
        InternalError,
    )
}
