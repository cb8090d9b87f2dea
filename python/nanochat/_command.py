"""The command line program that comes with this package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nanochat.errors import LibraryNotFoundError


def program() -> Path:
    """The program nanochat: NANOCHAT_COMMAND, this package, the source tree."""
    here = Path(__file__).resolve().parent
    places = [here / "bin" / "nanochat", here.parents[1] / "build" / "bin" / "nanochat"]
    if named := os.environ.get("NANOCHAT_COMMAND"):
        places = [Path(named)]
    for place in places:
        if place.exists():
            return place
    raise LibraryNotFoundError(
        f"the program {places[0]} is missing", hint="reinstall the package, or run `make build` in the source tree"
    )


def main() -> None:
    """Becomes the program nanochat."""
    try:
        path = program()
    except LibraryNotFoundError as e:
        sys.exit(f"error: {e.message}\nhint: {e.hint}")
    os.execv(path, ["nanochat", *sys.argv[1:]])
