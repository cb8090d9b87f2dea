"""What goes in and comes out: options, messages, tokens, completions. Nothing here needs the library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from typing_extensions import Self

FinishReason = Literal["stop", "length", "cancelled", "error"]


class GenOptions(TypedDict, total=False):
    """What to generate. The defaults are those of the command `nanochat generate`."""

    max_tokens: int | None
    """Tokens at most (200); None is as many as the context holds."""
    temperature: float
    """Divides the logits (0: the most likely token)."""
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    """Last tokens that penalties see (0: all)."""
    seed: int
    """The same seed gives the same text, on every machine."""
    stop: str | Sequence[str]
    """Texts that end the answer without being part of it."""
    logit_bias: Mapping[int, float]
    """Added to the logits of tokens; -inf bans one."""
    ignore_end: bool
    """Go on after the tokens that end a text."""
    special: bool
    """Read the texts of special tokens in the prompt as those tokens."""
    logprobs: int
    """Give log probabilities, and those of so many of the likeliest tokens."""
    timeout: float
    """Seconds for the whole answer; after them GenerationTimeoutError is raised. Tokens do not depend on it."""


class Message(TypedDict):
    """A turn of a conversation."""

    role: str
    """ "system", "user" or "assistant"."""
    content: str


@dataclass(frozen=True)
class ModelInfo:
    """What a model is and how it runs."""

    name: str
    """Its name in the zoo, else the one in the file."""
    architecture: str
    path: str
    sha256: str
    """Of the tensor data, as the file says; "" where it does not."""
    licence: str
    description: str
    bytes: int
    """Size of the file."""
    weight_bytes: int
    """Memory of the weights."""
    bits_per_weight: float
    layers: int
    context: int
    vocab_size: int
    kernel: str
    device: str
    threads: int
    chat_template: str
    """Name of the chat template; "" for a model that only continues text."""
    fim: bool
    """Whether fim() works."""
    params: Mapping[str, int]
    """Number of weights by class, and "total"."""
    config: Mapping[str, Any]
    """The shape of the network by the keys of configuration files."""
    raw: Mapping[str, Any] = field(repr=False)
    """All that the library says."""

    @classmethod
    def _of(cls, raw: Mapping[str, Any], name: str | None, path: str) -> Self:
        return cls(
            name=name or raw.get("name") or "",
            architecture=raw.get("architecture", ""),
            path=raw.get("path") or path,
            sha256=raw.get("sha256", ""),
            licence=raw.get("licence", ""),
            description=raw.get("description", ""),
            bytes=raw.get("file_bytes", 0),
            weight_bytes=raw.get("weight_bytes", 0),
            bits_per_weight=raw.get("bits_per_weight", 0.0),
            layers=raw["config"].get("layers", 0),
            context=raw["context"],
            vocab_size=raw["vocabulary"]["size"],
            kernel=raw["kernel"],
            device=raw.get("device", "cpu"),
            threads=raw["threads"],
            chat_template=raw.get("chat_template", ""),
            fim=bool(raw.get("fim", False)),
            params=raw["params"],
            config=raw["config"],
            raw=raw,
        )


@dataclass(frozen=True)
class Usage:
    """Tokens and times of an answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that were not computed again."""
    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    """From the first step to the first token."""
    decode_seconds: float = 0.0
    """From there to the end."""

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 where it cannot be told."""
        more = self.completion_tokens - 1
        return more / self.decode_seconds if more > 0 and self.decode_seconds > 0 else 0.0


_FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})[^\n`]*\n(?P<code>.*?)(?:^(?P=fence)[`~]*[ \t]*$|\Z)", re.M | re.S)


@dataclass(frozen=True)
class Completion:
    """An answer. In a notebook it is shown as code."""

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    usage: Usage
    seed: int
    logprobs: list[float] | None = None
    """With the option logprobs: the natural logarithm of each token's probability."""
    prompt: str | None = field(default=None, repr=False, compare=False)
    """The prompt, where it was one text."""

    def code(self) -> str:
        """The first fenced block of the answer (``` or ~~~, closed or not), else all of it."""
        found = _FENCE.search(self.text)
        return found["code"] if found else self.text

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from nanochat import _html

        return _html.completion(self)


class Token(str):
    """The text of one step of an answer, whole characters, perhaps none, with the token it came from."""

    id: int
    """The token; -1 for text that was held back until the end."""
    logprob: float | None
    top: list[tuple[int, float]]
    """With the option logprobs: the likeliest tokens here, and the logarithms of their probabilities."""

    def __new__(
        cls, text: str, id: int = -1, logprob: float | None = None, top: Sequence[tuple[int, float]] = ()
    ) -> Self:
        token = super().__new__(cls, text)
        token.id, token.logprob, token.top = id, logprob, list(top)
        return token

    def __getnewargs__(self) -> tuple[Any, ...]:
        return str(self), self.id, self.logprob, self.top


@dataclass(frozen=True)
class Progress:
    """How far a download or a check is."""

    name: str
    state: str
    """ "waiting" (for another process), "checking" (what is there already), "downloading", "done"."""
    done: int
    """Bytes."""
    total: int
    """Bytes; 0 where nobody knows."""
    seconds: float
    """Since the beginning."""

    @property
    def fraction(self) -> float:
        """0 to 1; 0 where the total is not known."""
        return min(self.done / self.total, 1.0) if self.total else 0.0


@dataclass(frozen=True)
class ZooEntry:
    """A model that has a name."""

    name: str
    revision: str
    state: str
    """ "bundled", "cached", "partial", "available", "planned" or "missing"."""
    size: int
    """Bytes of the file; 0 where nobody knows."""
    sha256: str
    licence: str
    description: str
    path: str | None
    """Its file, if it is on this machine."""
    instead: str | None
    """The model to use while this one is planned."""

    @property
    def here(self) -> bool:
        """Whether it can be loaded without the network."""
        return self.path is not None and self.state in ("bundled", "cached")
