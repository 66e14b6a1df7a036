"""Compile the C sources beside this file for this machine, once, and load them.

PyTorch's operations go over a batch layer by layer, each from memory to memory; compiled, a block of rows goes through
all layers while it is in the cache. Numbers are the same but for rounding, and without a compiler nothing is missing
but speed. What is built lies in the user's own cache folder and not under `$OFFMARL_HOME`, which may be somebody
else's: it is loaded as code.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from offmarl.atomic import replacing
from offmarl.errors import UsageError

Kernels = Literal["auto", "compiled", "torch"]

SOURCES = [Path(__file__).with_name(name) for name in ("perceptron.c", "recurrent.c")]
HEADERS = [Path(__file__).with_name(name) for name in ("product.h", "bfloat16.h")]
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")  # no -ffast-math: a NaN must stay one
PATIENCE_SECONDS = 120  # two are usual


@dataclass(frozen=True)
class Library:
    """The compiled functions, and how they came to be."""

    functions: ctypes.CDLL
    compiler: str
    lanes: int  # numbers in a vector register
    bfloat16: bool  # whether the processor has units for it

    def __str__(self) -> str:
        bfloat16 = ", bfloat16 on request" if self.bfloat16 else ""
        return f"compiled, {self.lanes} numbers at a time{bfloat16} ({self.compiler})"


@dataclass(frozen=True)
class Unavailable:
    """Why nothing is compiled."""

    reason: str

    def __str__(self) -> str:
        return f"PyTorch's operations ({self.reason})"


@cache
def library() -> Library | Unavailable:
    """Build the library, or find it built."""
    if os.name != "posix":
        return Unavailable("nothing is compiled on this operating system")
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return Unavailable("no C compiler found")
    try:
        name = (_run([compiler, "--version"]).splitlines() or [compiler])[0].strip()
        path = cache_folder() / f"networks-{_fingerprint(name)}.so"
        if not path.exists():
            with replacing(path) as building:
                _run([compiler, *FLAGS, "-o", str(building), *map(str, SOURCES)])
        functions = ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        complaint = str(error.stderr).strip().splitlines() or ["no message"]
        return Unavailable(f"{compiler} failed: {complaint[0]}")
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:  # RuntimeError: no home folder
        return Unavailable(str(error))
    pointer, index = ctypes.c_void_p, ctypes.c_int64
    functions.forward.argtypes = [pointer] * 6 + [index] * 2
    functions.backward.argtypes = [pointer] * 8 + [index] * 2
    functions.gru_forward.argtypes = [pointer] * 10 + [index] * 2
    functions.gru_backward.argtypes = [pointer] * 15 + [index] * 2
    return Library(functions, name, int(functions.lanes_of_a_vector()), bool(functions.bfloat16_units()))


def cache_folder() -> Path:
    """Make the folder `offmarl` in `$XDG_CACHE_HOME` (default `~/.cache`). Raises `OSError` where others may write."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "offmarl"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} can be written to by others, and what lies there is run")
    return folder


def _fingerprint(compiler: str) -> str:
    """Tell sources, compilers and processors apart: home folders are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = "\n".join(
            sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
        )
    except OSError:
        processor = platform.processor()
    sources = [path.read_text(encoding="utf-8") for path in (*SOURCES, *HEADERS)]
    made_of = (*sources, " ".join(FLAGS), compiler, platform.machine(), processor)
    return hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]


def _run(command: list[str]) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    ).stdout


_chosen: Kernels = "auto"
_rounding = False


def in_use() -> Library | None:
    """Give the compiled functions, or None where PyTorch is to do the work."""
    found = library() if _chosen != "torch" else None
    return found if isinstance(found, Library) else None


@contextmanager
def kernels(choice: Kernels) -> Iterator[str]:
    """Choose who runs networks on the CPU for the duration of a block, and say who it is.

    "auto" compiles where it can. Raises `UsageError` where "compiled" is asked for and nothing can be compiled.
    """
    global _chosen
    before = _chosen
    found = library() if choice != "torch" else None
    if choice == "compiled" and isinstance(found, Unavailable):
        raise UsageError(f"nothing can be compiled here ({found.reason}): set train.kernels=auto")
    _chosen = choice
    try:
        yield str(found or "PyTorch's operations")
    finally:
        _chosen = before


def rounds() -> bool:
    """Say whether hidden layers, and what is multiplied between them, are of bfloat16."""
    return _rounding


@contextmanager
def bfloat16(wanted: bool = True) -> Iterator[None]:
    """Let compiled perceptrons round hidden layers, and what is multiplied between them, or not, during a block.

    Raises `UsageError` where it is wanted and nothing compiled is in use, or the processor has no units for it.
    """
    global _rounding
    found = in_use()
    if wanted and (found is None or not found.bfloat16):
        lacking = "this processor has no units for it" if found else "nothing compiled runs the networks"
        raise UsageError(f"train.matmul_precision=bfloat16: {lacking}; leave it at auto")
    before = _rounding
    _rounding = wanted
    try:
        yield
    finally:
        _rounding = before
