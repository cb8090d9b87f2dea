"""The pieces of an answer, as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

from nanochat._context import Context
from nanochat._library import FINISH
from nanochat._types import Completion, FinishReason, GenOptions, Token, Usage
from nanochat.errors import BusyError, CancelledError, ClosedError, GenerationTimeoutError, NanochatError

if TYPE_CHECKING:
    from typing_extensions import Self

    from nanochat._native import Step

# How long a call into the library lasts at most, so that Ctrl-C is seen, in milliseconds.
SLICE = 50


class Source(Protocol):
    """What a stream reads from: the library, or another process."""

    @property
    def closed(self) -> bool: ...
    def read(self, steps: list[Step], wait: int, most: int = 1) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def embedding(self) -> bytes: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


class TokenStream(Context, Iterator[Token]):
    """The pieces of an answer, as they come. One thread reads it; cancel() and close() work from any.

    After KeyboardInterrupt the stream goes on where it was; completion holds what was read so far.
    """

    def __init__(
        self,
        source: Source,
        options: GenOptions,
        prompt: str | None = None,
        on_end: Callable[[Completion], None] | None = None,
    ) -> None:
        self._source, self._prompt, self._on_end = source, prompt, on_end
        self._seed, self._logprobs = options.get("seed", 0), options.get("logprobs") is not None
        timeout = options.get("timeout")
        self._timeout, self._deadline = timeout, None if timeout is None else time.monotonic() + timeout
        # What was read, and how much of it was given out. An interrupt may come at any time: a step enters by one
        # append and leaves by one addition, so that none is lost or given twice.
        self._steps: list[Step] = []
        self._given = 0
        self._ended: FinishReason | None = None
        self._reading = threading.Lock()
        self._stats: dict[str, int] = {}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        while self._ended is None:
            if (token := self._step(SLICE)) is not None:
                return token
        raise StopIteration

    def _step(self, wait: int) -> Token | None:
        """The next token, or None if none came in time or the answer is over."""
        if not self._reading.acquire(blocking=False):
            raise BusyError("another thread reads the stream", hint="give every thread its own stream")
        try:
            if self._source.closed:
                raise ClosedError("the stream was closed")
            if self._given == len(self._steps):
                self._check_time()
                try:
                    self._source.read(self._steps, wait, 16)
                except CancelledError:
                    self._end("cancelled")
                    raise
                except NanochatError as e:
                    if not isinstance(e, BusyError | ClosedError):
                        self._end("error")
                    raise
                if self._given == len(self._steps):
                    return None
            step = self._steps[self._given]
            token = self._token(step) if step[0] or step[1] >= 0 else None
            self._given += 1
            if step[2]:
                self._end(cast("FinishReason", FINISH.get(step[2], "error")))
            return token
        finally:
            self._reading.release()

    def _token(self, step: Step) -> Token:
        return Token(step[0], step[1], step[3] if self._logprobs and step[1] >= 0 else None, step[5])

    def _check_time(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        self._source.cancel()
        self._end("cancelled")
        done = self.completion
        error = GenerationTimeoutError(
            f"no end after {self._timeout} s and {len(done.tokens)} tokens",
            hint="raise timeout, or lower max_tokens; what came is in .completion",
        )
        error.completion = done
        raise error

    def _end(self, reason: FinishReason) -> None:
        if self._ended is None:
            self._ended = reason
            self._tell()

    def _tell(self) -> None:
        if (on_end := self._on_end) is not None:
            self._on_end = None
            on_end(self.completion)

    @property
    def completion(self) -> Completion:
        """The answer so far; whole once the stream has been read to its end. Until then its finish_reason is
        "cancelled", which it stays if nobody goes on reading."""
        if not self._source.closed:
            try:
                self._stats = self._source.stats()
            except NanochatError:  # another thread is reading, or the process of the engine died
                pass
        steps, stats = self._steps[: self._given], self._stats
        ids = [s[1] for s in steps if s[1] >= 0]
        return Completion(
            text="".join(s[0] for s in steps),
            tokens=ids,
            finish_reason=self._ended or "cancelled",
            usage=Usage(
                prompt_tokens=stats.get("prompt_tokens", 0),
                completion_tokens=len(ids),
                cached_tokens=stats.get("cached_tokens", 0),
                queued_seconds=stats.get("queued_ns", 0) / 1e9,
                prefill_seconds=stats.get("prefill_ns", 0) / 1e9,
                decode_seconds=stats.get("decode_ns", 0) / 1e9,
            ),
            seed=self._seed,
            logprobs=[s[3] for s in steps if s[1] >= 0 and s[3] is not None] if self._logprobs else None,
            prompt=self._prompt,
        )

    def show(self) -> Completion:
        """Reads the stream to its end and shows the text meanwhile: in a notebook as one output that is renewed at
        most 15 times a second, elsewhere on standard output. An interrupt (Ctrl-C, ■) ends the answer, not the
        program: what came is returned, with the finish_reason "cancelled"."""
        from nanochat import _display, _html

        live, text = _display.Live(15.0), [s[0] for s in self._steps[: self._given]]
        try:
            for token in self:
                text.append(token)
                live.update(lambda: _html.partial(self._prompt, "".join(text)), token)
        except (KeyboardInterrupt, CancelledError):
            self.cancel()
        done = self.completion
        self.close()
        live.end(lambda: _html.completion(done), "" if done.text.endswith("\n") else "\n")
        return done

    def cancel(self) -> None:
        """Ends generation and returns at once. The reader gets CancelledError."""
        self._source.cancel()

    def close(self) -> None:
        """Ends the stream. Closing twice is no error."""
        if not self._source.closed:
            _ = self.completion  # keeps the counts
            self._tell()
            self._source.close()

    def _leave(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a stream cannot be pickled; pickle its completion")

    def __repr__(self) -> str:
        return f"<TokenStream: {self._given} tokens, {self._ended or 'running'}>"
