"""The C sources here, compiled when first needed with the machine's own C compiler and kept;
without one, everything runs in torch.

WHET_KERNELS=off leaves them out. CC names another compiler.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = [
    Path(__file__).with_name(name)
    for name in ("ops.c", "logprobs.c", "product.c", "decode.c", "attention.c")
]
READ = [*(Path(__file__).with_name(name) for name in ("kernels.h", "tiles.h")), *SOURCES]
FLAGS = (
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
SECONDS = 120  # for the compiler
SMALL = 1 << 14  # numbers; a kernel over fewer runs on one thread
BLOCK = 64  # rows to a partial sum, as in kernels.c


class Kernels:
    """The compiled functions. A tensor is handed over as its address, so it must outlive the call,
    be contiguous and float32.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.functions: dict[str, Any] = {}

    def call(
        self,
        name: str,
        tensors: tuple[Tensor | int | None, ...],
        *numbers: int | float,
        work: int = 1 << 62,
    ) -> None:
        """kernels.c's function: addresses (of tensors, or themselves), then numbers, then the
        threads that `work` numbers are worth.
        """
        function = self.functions.get(name)
        if function is None:
            function = self.functions[name] = getattr(self.library, name)
            kinds = [ctypes.c_float if isinstance(x, float) else ctypes.c_int64 for x in numbers]
            function.argtypes = [*(ctypes.c_void_p for _ in tensors), *kinds, ctypes.c_int]
            function.restype = None
        threads = torch.get_num_threads() if work >= SMALL else 1
        function(
            *[t.data_ptr() if isinstance(t, Tensor) else t for t in tensors], *numbers, threads
        )


def _told(name: str, *numbers: int) -> int:
    """What a function without tensors says."""
    compiled = kernels()
    assert compiled is not None  # asked only where there are some
    function = getattr(compiled.library, name)
    function.argtypes, function.restype = [ctypes.c_int64] * len(numbers), ctypes.c_int64
    return function(*numbers)


def attention_room(longest: int, read: int, size: int) -> int:
    """Numbers that a thread of `attention` works in: no segment is longer, none reads more before
    it, a head has `size`.
    """
    return _told("attention_room", longest, read, size)


def packed(weight: Tensor) -> Tensor:
    """A linear map's weight [o, i] as `product` reads it."""
    (o, i), compiled, panel = weight.shape, kernels(), _told("panel")
    made = weight.new_empty(-(-o // panel) * panel * i)
    assert compiled is not None
    compiled.call("pack", (weight.contiguous(), made), o, i, work=weight.numel())
    return made


def product(x: Tensor, weight: Tensor, bias: Tensor | None, columns: int) -> Tensor:
    """y [n, columns] = x [n, i] W^T + bias, W being `packed`. A row's bits depend neither on the
    rows beside it nor on the threads.
    """
    (n, i), compiled = x.shape, kernels()
    y = x.new_empty(n, columns)
    assert compiled is not None
    compiled.call(
        "product", (x.contiguous(), weight, bias, y), n, i, columns, 0, work=n * i * columns
    )
    return y


@cache
def kernels() -> Kernels | None:
    """None where they are switched off or there is no compiler that can make them."""
    if os.environ.get("WHET_KERNELS", "") == "off" or torch.get_default_device().type != "cpu":
        return None
    try:
        return Kernels(ctypes.CDLL(str(_built())))
    except (OSError, subprocess.SubprocessError):
        return None


def usable(*tensors: Tensor | None) -> bool:
    """Whether all of them are float32 on a CPU, and there are kernels."""
    plain = all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors)
    return plain and kernels() is not None


def _built() -> Path:
    """The library for this source, compiler and processor. Raises OSError or SubprocessError."""
    compiler = shlex.split(os.environ.get("CC", "")) or [
        shutil.which("cc") or shutil.which("gcc") or "cc"
    ]
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, check=True, timeout=SECONDS
    ).stdout
    told = [
        *(file.read_bytes() for file in READ),
        " ".join([*compiler, *FLAGS]).encode(),
        version,
        _processor(),
    ]
    digest = hashlib.sha256(b"\0".join(told)).hexdigest()
    name = f"kernels-{digest[:16]}.so"
    for place in (_cache, _aside):
        try:
            folder = place()
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / name).is_file():
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    made = Path(scratch) / name
                    command = [*compiler, *FLAGS, "-o", str(made), *map(str, SOURCES), "-lm"]
                    subprocess.run(command, capture_output=True, check=True, timeout=SECONDS)
                    made.replace(folder / name)
            return folder / name
        except OSError:
            continue
    raise OSError("no folder to keep the kernels in")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whet"


def _aside() -> Path:
    """Where there is no home to write to."""
    return Path(tempfile.mkdtemp(prefix="whet-"))


def _processor() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(
        sorted({x for x in lines if x.startswith((b"model name", b"flags", b"Features"))})
    )
