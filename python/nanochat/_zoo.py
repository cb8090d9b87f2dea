"""Models by name: loading, listing, downloading, checking, removing."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from nanochat import _jobs
from nanochat._display import reporter, size
from nanochat._model import Model
from nanochat._options import uint32
from nanochat._types import ModelInfo, Progress, ZooEntry
from nanochat.errors import InvalidArgumentError, ModelNotFoundError, ModelNotPublishedError

Report = bool | Callable[[Progress], None]


def backend(isolate: bool) -> Any:
    """The engine in this process, or a new one in a process of its own."""
    if isolate:
        from nanochat._remote import Remote

        return Remote()
    from nanochat._native import Native

    return Native()


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    context: int | None = None,
    ctx: int | None = None,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    isolate: bool = False,
    progress: Report = True,
    batch: int | None = None,
    speculate: int = 0,
    kernel: str | None = None,
    kv_int8: bool = False,
    huge_pages: bool = True,
    pin: bool = False,
) -> Model:
    """Opens a model: a path, a file:// URL, a name of list_models() (NAME or NAME@REVISION), or
    hub:OWNER/REPO/FILE.gguf@REVISION.

    A name is looked for among the models that came with the package, in the cache, and then on the network, unless
    offline (default: NANOCHAT_OFFLINE). progress: True shows a download, a function gets Progress, False is silent.
    isolate: run the engine in a process of its own.

    context (or ctx): positions of a stream, prompt and answer (default: those of the model); threads: default the cores
    this process may use; batch: streams computed at the same time (8); speculate: tokens to guess ahead from the text
    so far; kernel: a name in system_info()["kernels"]; kv_int8: keep keys and values in 8 bits; huge_pages: copy the
    weights into memory with huge pages; pin: bind threads to processors; device: "cpu", "cuda", or "auto", a GPU that
    can be used, else the CPU (default: NANOCHAT_DEVICE, else "cpu"). Only kv_int8 changes what is generated.
    """
    if device not in (None, "auto", "cpu", "cuda"):
        raise InvalidArgumentError(f"device is {device!r}, expected 'auto', 'cpu' or 'cuda'")
    if ctx is not None and context is not None and ctx != context:
        raise InvalidArgumentError(f"context is {context} and ctx {ctx}", hint="they mean the same: give one of them")
    options = {
        "context": uint32("context", ctx if context is None else context),
        "threads": uint32("threads", threads),
        "batch": uint32("batch", batch),
        "speculate": uint32("speculate", speculate),
        "kernel": kernel,
        "device": device,
        "kv_int8": kv_int8,
        "huge_pages": huge_pages,
        "pin": pin,
    }
    name = with_revision(os.fsdecode(os.fspath(name_or_path)), revision)
    where = {"cache": None if cache_dir is None else os.fspath(cache_dir), "offline": offline}
    return open_model(name, options, where, isolate=isolate, progress=progress)


def open_model(
    name: str,
    options: Mapping[str, Any],
    where: dict[str, Any] | None = None,
    *,
    isolate: bool = False,
    progress: Report = True,
) -> Model:
    """Finds a model and opens it."""
    engine = backend(isolate)
    try:
        found = find(engine, name, where or {}, progress)
        named = None if found.get("source") == "path" else name
        model = Model(engine, found["path"], options, named, isolate)
        if named is not None and not model.info.licence:
            model.info = completed(engine, model.info, where or {})
        return model
    except BaseException:
        if isolate:
            engine.leave()
        raise


def completed(engine: Any, info: ModelInfo, where: dict[str, Any]) -> ModelInfo:
    """What the zoo knows about a model whose file says less."""
    base, _, revision = info.name.partition("@")
    for m in engine.zoo({"cache": where.get("cache")})["models"]:
        if m["name"] == base and revision in ("", m.get("revision")):
            return replace(
                info,
                licence=m.get("licence", ""),
                description=info.description or m.get("description", ""),
            )
    return info


def with_revision(name: str, revision: str | None) -> str:
    if revision is None:
        return name
    if "@" in name and not name.endswith("@" + revision):
        raise InvalidArgumentError(f"{name!r} and revision {revision!r} disagree", hint="give the revision once")
    return name if "@" in name else f"{name}@{revision}"


def like_path(name: str) -> bool:
    """Whether a name is never looked up in the zoo (as core/zoo's IsPath)."""
    if name.startswith("hub:"):
        return False
    return name.startswith("file:") or "/" in name or "\\" in name or name.endswith(".gguf")


def find(engine: Any, name: str, where: dict[str, Any], progress: Report) -> dict[str, Any]:
    """A model's file on this machine, downloaded if need be."""
    try:
        return dict(engine.resolve(name, where))
    except ModelNotPublishedError:
        raise
    except ModelNotFoundError as e:
        if like_path(name):
            raise not_found(engine, name, where, e) from None
    try:
        return _jobs.result(engine.download(name, where), name, reporter(progress))
    except ModelNotPublishedError:
        raise
    except ModelNotFoundError as e:
        raise not_found(engine, name, where, e) from None


def not_found(engine: Any, name: str, where: dict[str, Any], cause: ModelNotFoundError) -> ModelNotFoundError:
    """The error of a model that is nowhere: what was asked for, what is near, what was searched, what to do."""
    if like_path(name):
        path = name.removeprefix("file://")
        directory = os.path.dirname(path) or "."
        try:
            files = [f for f in os.listdir(directory) if f.endswith(".gguf")]
        except OSError:
            files = []
        near = [os.path.join(directory, f) if directory != "." else f for f in closest(os.path.basename(path), files)]
        searched = [path]
        fix = "give the path of a .gguf file, or a name of nanochat.list_models()"
    else:
        listing = engine.zoo({"cache": where.get("cache")})
        names = sorted({m["name"] for m in listing["models"]})
        base = name.partition("@")[0]
        near = closest(base, names)
        searched = [f"zoo index {listing['index']} ({len(names)} models)", os.path.join(".", name)]
        searched += [listing["cache"]] if listing.get("cache") else []
        fix = "list all: nanochat list, or nanochat.list_models()"
        if base in names:  # then it is the revision
            near = [m["name"] + "@" + m["revision"] for m in listing["models"] if m["name"] == base]
    lines = [f'no model "{name}"'] + [f"did you mean: {' or '.join(near)}"] * bool(near)
    lines += [f"searched: {', '.join(searched)}"]
    if like_path(name):
        lines.append(f"reason: {cause.message}")
    error = ModelNotFoundError("\n  ".join(lines), hint=fix)
    error.name, error.near, error.searched = name, tuple(near), tuple(searched)
    return error


def closest(name: str, names: list[str]) -> list[str]:
    return difflib.get_close_matches(name, names, n=1, cutoff=0.5)


class ModelZoo:
    """Models by name, with one cache, hub and token. The functions of the same names use the defaults: the settings,
    else the environment (NANOCHAT_CACHE, NANOCHAT_ENDPOINT, NANOCHAT_TOKEN, NANOCHAT_OFFLINE)."""

    def __init__(
        self,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        endpoint: str | None = None,
        token: str | None = None,
        offline: bool | None = None,
    ) -> None:
        self._where: dict[str, Any] = {
            "cache": None if cache_dir is None else os.fspath(cache_dir),
            "endpoint": endpoint,
            "token": token,
            "offline": offline,
        }

    def list(self) -> ModelList:
        """All models that have names or are in the cache."""
        return ModelList(entry(m) for m in backend(False).zoo(self._where)["models"])

    def path(self, name: str, *, revision: str | None = None) -> Path | None:
        """The file of a model, or None if it is not on this machine."""
        try:
            return Path(backend(False).resolve(with_revision(name, revision), self._where)["path"])
        except ModelNotFoundError:
            return None

    def download(
        self,
        name: str,
        *,
        revision: str | None = None,
        force: bool = False,
        url: str | None = None,
        sha256: str | None = None,
        progress: Report = True,
    ) -> Path:
        """Downloads a model unless it is on this machine, checks its SHA-256 and returns its file. An interrupted
        download goes on where it stopped. url and sha256: take the file from there and call it name."""
        engine, name = backend(False), with_revision(name, revision)
        where = {**self._where, "force": force, "url": url, "sha256": sha256}
        try:
            job = engine.download(name, where)
            return Path(_jobs.result(job, name, reporter(progress))["path"])
        except ModelNotPublishedError:
            raise
        except ModelNotFoundError as e:
            raise not_found(engine, name, where, e) from None

    def load(self, name: str, *, progress: Report = True, **options: Any) -> Model:
        """load_model() with this cache and hub."""
        self.download(name, progress=progress)
        options.setdefault("cache_dir", self._where["cache"])
        return load_model(name, progress=progress, offline=True, **options)

    def verify(self, name: str | os.PathLike[str], *, progress: Report = False) -> str:
        """Reads a model (or a file) and compares it with its SHA-256; ChecksumError if it is another. Returns the
        SHA-256."""
        text = os.fsdecode(os.fspath(name))
        job = backend(False).verify(text, self._where)
        return str(_jobs.result(job, text, reporter(progress)).get("sha256", ""))

    def remove(self, name: str) -> int:
        """Removes a model from the cache: bytes that are free now."""
        return int(backend(False).remove(name, self._where))

    def __repr__(self) -> str:
        return f"<ModelZoo: {self._where['cache'] or 'default cache'}>"


class ModelList(list[ZooEntry]):
    """Entries of the zoo; shown as a table."""

    def _repr_html_(self) -> str:
        from nanochat import _html

        return _html.zoo(self)

    def __repr__(self) -> str:
        wide = max((len(e.name) for e in self), default=0)
        lines = [f"{e.name:{wide}}  {e.state:9}  {size(e.size) if e.size else '':>8}  {e.description}" for e in self]
        return "\n".join(lines) or "[]"


def entry(m: Mapping[str, Any]) -> ZooEntry:
    return ZooEntry(
        name=m["name"],
        revision=m.get("revision", ""),
        state=m["state"],
        size=m.get("size") or m.get("bytes") or 0,
        sha256=m.get("sha256", ""),
        licence=m.get("licence", ""),
        description=m.get("description", ""),
        path=m.get("path"),
        instead=m.get("instead"),
    )


def list_models() -> ModelList:
    """All models that have names or are in the cache."""
    return ModelZoo().list()


def download(
    name: str,
    *,
    revision: str | None = None,
    force: bool = False,
    url: str | None = None,
    sha256: str | None = None,
    progress: Report = True,
) -> Path:
    """Downloads a model unless it is on this machine: ModelZoo.download() with the defaults."""
    return ModelZoo().download(name, revision=revision, force=force, url=url, sha256=sha256, progress=progress)


class Cache:
    """The models that were downloaded."""

    @property
    def directory(self) -> Path | None:
        """Where they are; None where no directory is known."""
        where = backend(False).zoo({}).get("cache")
        return Path(where) if where else None

    def list(self) -> ModelList:
        """Those that are in the cache, whole or in part."""
        return ModelList(e for e in ModelZoo().list() if e.state in ("cached", "partial"))

    def remove(self, name: str) -> int:
        """Removes a model: bytes that are free now."""
        return ModelZoo().remove(name)

    def verify(self, name: str | None = None, *, progress: Report = False) -> dict[str, str]:
        """Compares a model, or all of them, with their SHA-256: name and SHA-256. ChecksumError at the first that
        is another."""
        zoo = ModelZoo()
        names = [name] if name is not None else [e.name for e in self.list() if e.state == "cached"]
        return {n: zoo.verify(n, progress=progress) for n in names}


cache = Cache()
