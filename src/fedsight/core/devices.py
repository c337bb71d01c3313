"""The devices that this machine can compute on, by name."""

from __future__ import annotations

import os
import re
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedsight.core.errors import EngineError
from fedsight.core.rng import secret_generator

NAMES = "'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'"
# How messages begin that PyTorch raises as mere RuntimeErrors.
_GONE = ("CUDA error", "CUDA driver", "cuDNN error", "NVML", "HIP error", "MPS backend")


def available() -> list[str]:
    """The devices of this machine: `cpu`, then `cuda:0` and so on, then `mps`."""
    found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def described() -> str:
    """The accelerators of this machine, in words; "" if it has none."""
    found = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join([*found, "Apple GPU (mps)"] if "mps" in available() else found)


def instructions() -> str:
    """The widest instructions that PyTorch uses on this processor: AVX2, AVX512."""
    return str(torch.backends.cpu.get_cpu_capability())


def find_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first accelerator, or the CPU.

    Raises EngineError, listing the available devices, for any other name.
    """
    known = available()
    if name == "auto":
        return torch.device(known[1] if len(known) > 1 else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", name):
        raise EngineError(f"'{name}' is not a device", f"write {NAMES}")
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in known:
        raise EngineError(
            f"this machine has no device '{name}'", f"choose one of: auto, {', '.join(known)}"
        )
    return torch.device(wanted)


def spread(name: str, workers: int) -> list[str]:
    """The device of each of so many workers: one card after the other if `name` leaves it open."""
    cards = [card for card in available() if card.startswith("cuda:")]
    if find_device(name).type != "cuda" or name not in ("auto", "cuda"):
        return [name] * workers
    return [cards[worker % len(cards)] for worker in range(workers)]


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on an accelerator; None if it does not tell, as on the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def prepare(device: torch.device, precise: bool) -> None:
    """Make a GPU compute the same bits each time, and float32 in full unless not `precise`.

    By itself PyTorch computes convolutions of float32 in TF32, with 10 bits of each factor.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only so
    torch.use_deterministic_algorithms(True, warn_only=True)
    # The pooling of most networks would say so, though it does repeat itself without overlaps.
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    product = "ieee" if precise else "tf32"
    torch.backends.cuda.matmul.fp32_precision = product
    torch.backends.cudnn.conv.fp32_precision = product  # type: ignore[attr-defined]


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; to a GPU through pinned memory, while the CPU goes on."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def drawing(device: torch.device, value: int | None) -> Iterator[None]:
    """Within it, the default generators of the CPU and of `device` draw as `seed` says; afterwards
    they go on where they were (that of `mps` does not)."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed(device, value)
        yield


def seed(device: torch.device, value: int | None) -> None:
    """Seed the default generators of the CPU and of `device`, from which dropout draws; None: so
    that nobody can repeat what they draw.

    Not `torch.manual_seed`, which would reseed every accelerator of the process.
    """
    secret = value is None
    value = secrets.randbits(63) if value is None else value
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
    torch.default_generator.manual_seed(value)
    if secret:  # with more than the 32 bits of a seed
        torch.default_generator.set_state(secret_generator().get_state())


def release_memory(device: torch.device) -> None:
    """Give back what PyTorch keeps of the memory of an accelerator for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def is_gone(error: BaseException) -> bool:
    """Whether `error` says that the device itself failed: it hangs, or was taken away."""
    if isinstance(error, torch.AcceleratorError):
        return True
    return type(error) is RuntimeError and str(error).startswith(_GONE)
