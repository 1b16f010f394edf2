"""C kernels for a CPU in float32: compiled with the machine's own compiler at first use, then kept.

Without a compiler everything runs in torch. WHET_KERNELS=off leaves them out; CC names a compiler.
In here: the C sources, and how they are compiled and called. Not in here: which model calls them.
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

HERE = Path(__file__).parent
SOURCES = [HERE / f"{name}.c" for name in ("ops", "logprobs", "product", "decode", "attention")]
HEADERS = [HERE / "kernels.h", HERE / "tiles.h"]
FLAGS = (
    "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC",
)  # fmt: skip
SECONDS = 120  # for the compiler
SMALL = 1 << 14  # numbers; a kernel over fewer runs on one thread
BLOCK = 64  # rows to a partial sum, as in kernels.h


class Kernels:
    """The compiled functions.

    A tensor is handed over as its address, so it must be contiguous and float32 (or of the integer
    type that the function names), and outlive the call.
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
        """Calls a C function with the tensors' addresses, the numbers and the count of threads.

        An integer among `tensors` is an address itself, None is NULL. `work` is how many numbers
        the function goes over: below SMALL it gets one thread.
        """
        function = self.functions.get(name)
        if function is None:
            function = self.functions[name] = getattr(self.library, name)
            kinds = [ctypes.c_float if isinstance(x, float) else ctypes.c_int64 for x in numbers]
            function.argtypes = [*(ctypes.c_void_p for _ in tensors), *kinds, ctypes.c_int]
            function.restype = None
        threads = torch.get_num_threads() if work >= SMALL else 1
        addresses = [t.data_ptr() if isinstance(t, Tensor) else t for t in tensors]
        function(*addresses, *numbers, threads)

    def number(self, name: str, *numbers: int) -> int:
        """Returns the result of a C function from integers to an integer."""
        function = getattr(self.library, name)
        function.argtypes, function.restype = [ctypes.c_int64] * len(numbers), ctypes.c_int64
        return function(*numbers)


def attention_room(longest: int, prefix: int, head_dim: int) -> int:
    """Returns how many numbers of scratch a thread of `attention` needs.

    `longest` is the longest segment's length, `prefix` the longest shared prefix's.
    """
    return compiled().number("attention_room", longest, prefix, head_dim)


def packed(weight: Tensor) -> Tensor:
    """Returns a linear map's weight [o, i] in the order that `product` reads it."""
    (o, i), panel = weight.shape, compiled().number("panel")
    panels = weight.new_empty(-(-o // panel) * panel * i)
    compiled().call("pack", (weight.contiguous(), panels), o, i, work=weight.numel())
    return panels


def product(x: Tensor, weight: Tensor, bias: Tensor | None, columns: int) -> Tensor:
    """Returns y [n, columns] = x [n, i] W^T + bias, of a `packed` W.

    A row's bits depend neither on the rows beside it nor on the count of threads.
    """
    (n, i), y = x.shape, x.new_empty(len(x), columns)
    tensors = (x.contiguous(), weight, bias, y)
    compiled().call("product", tensors, n, i, columns, 0, work=n * i * columns)
    return y


@cache
def kernels() -> Kernels | None:
    """Returns the kernels; None where they are switched off or no compiler here can make them."""
    if os.environ.get("WHET_KERNELS", "") == "off" or torch.get_default_device().type != "cpu":
        return None
    try:
        return Kernels(ctypes.CDLL(str(_built())))
    except (OSError, subprocess.SubprocessError):
        return None


def compiled() -> Kernels:
    """Returns the kernels for a caller that has asked `usable`."""
    library = kernels()
    assert library is not None
    return library


def usable(*tensors: Tensor | None) -> bool:
    """Whether the kernels can take these tensors: all are float32 on a CPU, and there are kernels."""
    plain = all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors)
    return plain and kernels() is not None


def _built() -> Path:
    """Returns the library of this source, compiler and processor, compiled unless it was before.

    Raises OSError or SubprocessError where it cannot be compiled or kept.
    """
    default = shutil.which("cc") or shutil.which("gcc") or "cc"
    command = [*(shlex.split(os.environ.get("CC", "")) or [default]), *FLAGS]
    name = f"kernels-{_digest(command)[:16]}.so"
    for place in (_cache, _temporary):
        try:
            folder = place()
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / name).is_file():
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    library = Path(scratch) / name
                    subprocess.run(
                        [*command, "-o", str(library), *map(str, SOURCES), "-lm"],
                        capture_output=True, check=True, timeout=SECONDS,
                    )  # fmt: skip
                    library.replace(folder / name)
            return folder / name
        except OSError:
            continue
    raise OSError("no folder to keep the kernels in")


def _digest(command: list[str]) -> str:
    """Of all that decides what the compiler makes."""
    compiler = [*command[: -len(FLAGS)], "--version"]
    version = subprocess.run(compiler, capture_output=True, check=True, timeout=SECONDS).stdout
    sources = [file.read_bytes() for file in (*HEADERS, *SOURCES)]
    parts = [*sources, " ".join(command).encode(), version, _processor()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whet"


def _temporary() -> Path:
    """Where there is no home to write to."""
    return Path(tempfile.mkdtemp(prefix="whet-"))


def _processor() -> bytes:
    """The processor, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(
        sorted({x for x in lines if x.startswith((b"model name", b"flags", b"Features"))})
    )
