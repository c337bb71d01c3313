"""Noise from AES-256 in counter mode.

In a deployment every stream has a key of its own from the operating system (`fresh`), which is
never stored. Noise that were a function of a seed, of the values or of the question could be asked
for twice: two equal answers to different questions would have equal noise, and so show that they
are equal. A release that must be repeated is therefore kept (`deploy/site/release.py`), not
computed again.

A simulation draws its noise from the program's seed (`Noise`), so that a run can be repeated bit
for bit. That protects nobody, and its reports say so.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from fedsight.core.errors import StoreError
from fedsight.core.rng import Step

# What noise on whole numbers may reach at most. A float64 of this size still has eight binary
# digits after the point; one beyond 2^53 is a multiple of 2, 4, ..., and a whole number plus that
# tells its own last digits.
FINEST = 2.0**45
TAIL = 9.0  # standard deviations that noise never reaches: 54 bits reach sqrt(2 x 54 log 2) = 8.65
_BLOCK = 1 << 15  # normals drawn at once; intermediates stay in the second-level cache


class Noise:
    """A stream of noise, determined by the secret, the path and the values [d] that get it."""

    def __init__(self, secret: int, *path: Step, values: Iterable[Tensor] = ()) -> None:
        digest = hashlib.sha256(b"fedsight noise")
        for step in (secret, *path):
            text = str(step).encode()
            digest.update(f"{type(step).__name__}:{len(text)}:".encode() + text)
        for value in values:
            data = value.detach().contiguous().numpy()
            digest.update(f"{data.dtype}:{data.size}:".encode())
            digest.update(data.tobytes())
        cipher = Cipher(algorithms.AES(digest.digest()), modes.CTR(bytes(16)))
        self._stream = cipher.encryptor()

    def uniform(self, size: int) -> npt.NDArray[np.float64]:
        """Numbers in (0, 1), [size] float64, 53 bits each."""
        words = np.frombuffer(self._stream.update(bytes(8 * size)), dtype="<u8")
        return np.asarray((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def normal(self, size: int, deviation: float = 1.0) -> Tensor:
        """Gaussian noise of standard deviation `deviation`, [size] float64 (Box and Muller)."""
        out = np.empty(size + size % 2)
        for start in range(0, len(out), _BLOCK):
            part = out[start : start + _BLOCK]
            half = len(part) // 2
            radius = np.sqrt(-2.0 * np.log(self.uniform(half))) * deviation
            angle = 2.0 * math.pi * self.uniform(half)
            np.multiply(radius, np.cos(angle), out=part[:half])
            np.multiply(radius, np.sin(angle), out=part[half:])
        return torch.from_numpy(out[:size])


def added(values: Tensor, noise: Tensor, deviation: float) -> Tensor:
    """`values` [d] plus Gaussian `noise` [d] of this deviation, float32; both on a grid first.

    A floating-point sum near 0 has fewer digits if two large numbers cancel than if both are small.
    So its digits would tell what the noise was added to (Mironov 2012). On a grid, whose width is
    2^-40 of the deviation or less, the result is that of real-valued noise, rounded.
    """
    unit = 2.0 ** (math.frexp(deviation)[1] - 41)  # a power of two: scaling by it is exact
    return ((values.double() / unit).round() + (noise / unit).round()).mul(unit).float()


MakeNoise = Callable[..., Noise]  # (*path, values=...) -> a stream


def fresh(*path: Step, values: Iterable[Tensor] = ()) -> Noise:
    """A stream of noise under a new key of 32 bytes from the operating system.

    It is a `MakeNoise`; neither the path nor the values have any influence.
    """
    return Noise(int.from_bytes(secrets.token_bytes(32), "little"))


def secret_at(path: Path) -> int:
    """The 32 random bytes in the file at `path`, which is created if it does not exist.

    Raises StoreError if other users may read the file, or it is not 32 bytes long.
    """
    if not path.exists():
        _make_secret(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise StoreError(
            f"other users may read the noise secret {path} (mode {mode:o})",
            f"somebody may know it already: remove it, and a new one is created. To keep it: "
            f"chmod 600 {path}",
        )
    data = path.read_bytes()
    if len(data) != 32:
        raise StoreError(
            f"the noise secret {path} has {len(data)} bytes, not 32",
            "remove it, and a new one is created",
        )
    return int.from_bytes(data, "little")


def _make_secret(path: Path) -> None:
    """Write the file whole or not at all, and never readable by other users."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise StoreError(
            f"cannot write the noise secret {path}: {error.strerror or error}",
            "free some space or choose another location",
        ) from error
