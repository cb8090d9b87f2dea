"""Puts the shared library and the command line program into the wheel, and names the systems it runs on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return  # an editable installation uses the build directory of the source tree
        source = Path(self.root).parent
        out = source / "build" / "wheel"
        environment = {**os.environ, "PATH": f"{source / 'build' / 'tools'}:{os.environ['PATH']}"}
        program = out / "bin" / "nanochat"
        go = ["go", "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w"]
        for command in (["scripts/build-lib", out], [*go, "-o", program, "./cmd/nanochat"]):
            subprocess.run(command, cwd=source, env=environment, check=True)
        library = (out / "lib" / "libnanochat.so").resolve()
        build_data["force_include"] = {
            str(library): "nanochat/lib/libnanochat.so",
            str(program): "nanochat/bin/nanochat",
        }
        build_data["pure_python"] = False
        # The newest symbol of the C library that is used says which systems have it.
        minor = max(int(v) for f in (library, program) for v in re.findall(rb"GLIBC_2\.(\d+)", f.read_bytes()))
        build_data["tag"] = f"py3-none-manylinux_2_{minor}_{platform.machine()}"
