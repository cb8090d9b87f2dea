"""The command line program that comes with this package."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Becomes the program nanochat."""
    here = Path(__file__).resolve().parent
    places = [here / "bin" / "nanochat", here.parents[1] / "build" / "bin" / "nanochat"]
    for program in places:
        if program.exists():
            os.execv(program, ["nanochat", *sys.argv[1:]])
    sys.exit(f"error: {places[0]} is missing\nhint: reinstall the package, or run `make build` in the source tree")
