"""Contexts that grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from nanochat._context import Context
from nanochat._model import finish, turns
from nanochat._types import Completion, GenOptions, Message

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nanochat._model import Model
    from nanochat._stream import TokenStream


class Session(Context):
    """A context that grows: each call continues after everything before it, which is not computed again. One stream at
    a time; a second one is BusyError until the first was read to its end or closed. Model.session() makes it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._engine: Any = model._engine.session()
        self.messages: list[Message] = []
        """The conversation of chat(); it may be changed between calls."""

    def stream(self, text: str, **options: Unpack[GenOptions]) -> TokenStream:
        """Appends text to the context and continues it."""
        return self._model._stream("text", [text], options, prompt=text, session=self._engine)

    def generate(self, text: str, **options: Unpack[GenOptions]) -> Completion:
        """Appends text to the context and continues it."""
        return finish(self.stream(text, **options))

    @overload
    def chat(
        self,
        message: str | Sequence[Message],
        *,
        stream: Literal[False] = False,
        template: str | None = None,
        **options: Unpack[GenOptions],
    ) -> Completion: ...
    @overload
    def chat(
        self,
        message: str | Sequence[Message],
        *,
        stream: Literal[True],
        template: str | None = None,
        **options: Unpack[GenOptions],
    ) -> TokenStream: ...
    def chat(
        self,
        message: str | Sequence[Message],
        *,
        stream: bool = False,
        template: str | None = None,
        **options: Unpack[GenOptions],
    ) -> Completion | TokenStream:
        """Adds a text of the user, or several messages, to the conversation and answers; the answer joins the
        conversation when it has ended or its stream is closed."""
        new = [Message(role=r, content=t) for r, t in turns(message)]

        def keep(answer: Completion) -> None:
            self.messages.append(Message(role="assistant", content=answer.text))

        what = [turns([*self.messages, *new]), template]
        answer = self._model._stream("chat", what, options, session=self._engine, on_end=keep)
        self.messages += new
        return answer if stream else finish(answer)

    @property
    def tokens(self) -> list[int]:
        """The context so far."""
        return cast("list[int]", self._engine.tokens())

    @property
    def text(self) -> str:
        """The text of the context so far."""
        return self._model.detokenize(self.tokens)

    def truncate(self, keep: int) -> None:
        """Forgets all but the first tokens."""
        self._engine.truncate(keep)

    def close(self) -> None:
        """Frees the context. Closing twice is no error."""
        self._engine.close()

    def __len__(self) -> int:
        return len(self.tokens)

    def _leave(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a session cannot be pickled; keep its messages or its text")

    def __repr__(self) -> str:
        return "<Session: closed>" if self._engine.closed else f"<Session: {len(self)} tokens>"
