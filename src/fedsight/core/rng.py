"""Seeded generators derived by name, so that no draw depends on a global seed; and a secret one."""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
import torch

Step = str | int
_WORDS, _PLACE = 624, 24  # of the Mersenne Twister in the state of a torch generator: 64 bits each


def derive(seed: int, *path: Step) -> int:
    """A 63-bit seed for `path` under `seed`, e.g. `derive(0, "round", 3, "site", "a")`.

    Each step is hashed with its type and length, so that ("a", "b") and ("ab",), or 1 and "1",
    never share a seed.
    """
    digest = hashlib.sha256()
    for step in (seed, *path):
        text = str(step).encode()
        digest.update(f"{type(step).__name__}:{len(text)}:".encode() + text)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def generator(seed: int, *path: Step) -> torch.Generator:
    """A torch generator on the CPU for `path` under `seed`."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_generator(seed: int, *path: Step) -> np.random.Generator:
    """A NumPy generator for `path` under `seed`."""
    return np.random.Generator(np.random.PCG64(derive(seed, *path)))


def secret_generator() -> torch.Generator:
    """A torch generator on the CPU whose draws nobody can repeat.

    All of its state is from the operating system. `manual_seed` takes 32 bits of a seed there, so
    what was drawn could be compared with the draws of every seed.
    """
    made = torch.Generator().manual_seed(0)
    words = np.frombuffer(secrets.token_bytes(4 * _WORDS), "<u4").astype("<u8")
    state = made.get_state()
    state[_PLACE : _PLACE + 8 * _WORDS] = torch.from_numpy(words.view(np.uint8))
    made.set_state(state)
    return made
