"""Options of generation: checked, and in the form of the C interface."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from nanochat import _library as c
from nanochat._types import GenOptions
from nanochat.errors import InvalidArgumentError


def uint32(name: str, value: Any) -> int:
    """A count for C; None is 0."""
    if value is None:
        return 0
    if not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, expected a whole number")
    if not 0 <= value < 1 << 32:
        raise InvalidArgumentError(f"{name} is {value}, expected 0 to 2**32 - 1")
    return int(value)


def check_names(options: Mapping[str, Any], known: Iterable[str], what: str = "option") -> None:
    """Raises TypeError for a name that is not known, and names the nearest."""
    known = list(known)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            did = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise TypeError(f"unknown {what} {name!r}{did}")


_COUNTS = ("top_k", "penalty_window")
_NUMBERS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")


def normalise(options: GenOptions, flags: int = 0) -> dict[str, Any]:
    """The options as fields of nanochat_generate_options, with "stops" as a list and "bias" as pairs."""
    check_names(options, GenOptions.__annotations__)
    given = cast("Mapping[str, Any]", options)
    o: dict[str, Any] = {name: uint32(name, given[name]) for name in _COUNTS if name in given}
    o.update((name, float(given[name])) for name in _NUMBERS if name in given)
    if "max_tokens" in given:
        n = given["max_tokens"]
        if n is not None and n < 1:
            raise InvalidArgumentError(f"max_tokens is {n}, expected 1 or more", hint="None is as many as fit")
        o["max_tokens"] = uint32("max_tokens", n)
    seed = given.get("seed", 0)
    if not isinstance(seed, int):
        raise TypeError(f"seed is {seed!r}, expected a whole number")
    if not 0 <= seed < 1 << 64:
        raise InvalidArgumentError(f"seed is {seed}, expected 0 to 2**64 - 1")
    o["seed"] = seed
    if given.get("logprobs") is not None:
        flags |= c.GENERATE_LOGPROBS
        o["top_logprobs"] = uint32("logprobs", given["logprobs"])
    if (timeout := given.get("timeout")) is not None and not timeout > 0:
        raise InvalidArgumentError(f"timeout is {timeout}, expected more than 0 seconds", hint="None is no limit")
    flags |= c.GENERATE_IGNORE_END * bool(given.get("ignore_end")) | c.GENERATE_SPECIAL * bool(given.get("special"))
    o["flags"] = flags
    stop: str | Sequence[str] | None = given.get("stop")
    if stop is not None and (stops := [stop] if isinstance(stop, str) else list(stop)):
        o["stops"] = stops
    if bias := given.get("logit_bias"):
        o["bias"] = [(int(i), float(v)) for i, v in bias.items()]
    return o
