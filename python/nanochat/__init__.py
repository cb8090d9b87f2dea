"""nanochat: ternary language models on ordinary processors.

    import nanochat

    model = nanochat.load_model("nano-5m-rust")
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
    from nanochat._chart import Chart as Chart
    from nanochat._model import Model as Model
    from nanochat._model import system_info as system_info
    from nanochat._serve import Server as Server
    from nanochat._serve import serve as serve
    from nanochat._session import Session as Session
    from nanochat._settings import Settings as Settings
    from nanochat._settings import log as log
    from nanochat._settings import settings as settings
    from nanochat._stream import TokenStream as TokenStream
    from nanochat._train import StepRecord as StepRecord
    from nanochat._train import TrainingRun as TrainingRun
    from nanochat._train import train as train
    from nanochat._types import Completion as Completion
    from nanochat._types import GenOptions as GenOptions
    from nanochat._types import Message as Message
    from nanochat._types import ModelInfo as ModelInfo
    from nanochat._types import Progress as Progress
    from nanochat._types import Token as Token
    from nanochat._types import Usage as Usage
    from nanochat._types import ZooEntry as ZooEntry
    from nanochat._zoo import ModelZoo as ModelZoo
    from nanochat._zoo import cache as cache
    from nanochat._zoo import download as download
    from nanochat._zoo import list_models as list_models
    from nanochat._zoo import load_model as load_model

__version__ = "0.1.0"

# Where each public name is; its module is loaded when the name is used.
_lazy = {
    "Chart": "_chart",
    "Completion": "_types",
    "GenOptions": "_types",
    "Message": "_types",
    "Model": "_model",
    "ModelInfo": "_types",
    "ModelZoo": "_zoo",
    "Progress": "_types",
    "Server": "_serve",
    "Session": "_session",
    "Settings": "_settings",
    "StepRecord": "_train",
    "Token": "_types",
    "TokenStream": "_stream",
    "TrainingRun": "_train",
    "Usage": "_types",
    "ZooEntry": "_types",
    "cache": "_zoo",
    "download": "_zoo",
    "list_models": "_zoo",
    "load_model": "_zoo",
    "log": "_settings",
    "serve": "_serve",
    "settings": "_settings",
    "system_info": "_model",
    "train": "_train",
}

__all__ = [*_errors, *sorted(_lazy)]


def __getattr__(name: str) -> Any:
    if name not in _lazy:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"nanochat.{_lazy[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_lazy})
