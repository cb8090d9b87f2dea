"""nanochat: ternary language models on ordinary processors.

    import nanochat

    model = nanochat.load_model("model.gguf")
    print(model.generate("fn main() {", max_tokens=64).text)

    for piece in model.stream("fn main() {", seed=7):
        print(piece, end="")

Importing this package loads neither the library nor anything from the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanochat.errors import *  # noqa: F403
from nanochat.errors import __all__ as _errors

if TYPE_CHECKING:
    from nanochat._model import Completion as Completion
    from nanochat._model import GenerateOptions as GenerateOptions
    from nanochat._model import Model as Model
    from nanochat._model import ModelInfo as ModelInfo
    from nanochat._model import Token as Token
    from nanochat._model import TokenStream as TokenStream
    from nanochat._model import Usage as Usage
    from nanochat._model import load_model as load_model
    from nanochat._model import system_info as system_info

__version__ = "0.1.0"

_lazy = frozenset(
    (
        "Completion",
        "GenerateOptions",
        "Model",
        "ModelInfo",
        "Token",
        "TokenStream",
        "Usage",
        "load_model",
        "system_info",
    )
)

__all__ = [*_errors, *sorted(_lazy)]


def __getattr__(name: str) -> Any:
    if name not in _lazy:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nanochat import _model

    value = globals()[name] = getattr(_model, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_lazy})
