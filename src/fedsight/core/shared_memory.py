"""Tensors that several processes of one machine share without copying.

They are stored in an anonymous memory file, which containers do not limit to 64 MiB as they do
/dev/shm.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor

from fedsight.core.errors import EngineError


class Shared:
    """A tensor in shared memory; picklable while a process is being started.

    Raises EngineError when the system has no memory for it.
    """

    _fd = -1
    _close = staticmethod(os.close)  # the module may be unloaded when Python exits

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = max(1, torch.empty((), dtype=dtype).element_size() * torch.Size(shape).numel())
        try:
            self._fd = _memory_file(size)
            self.tensor = _map(self._fd, size, shape, dtype)
        except OSError as error:
            raise EngineError(
                f"the system cannot allocate {size:,} bytes of shared memory: {error.strerror}",
                "lower speed.workers, choose a smaller model, or free memory",
            ) from error

    @classmethod
    def of(cls, tensor: Tensor) -> Shared:
        """A shared copy of `tensor`."""
        shared = cls(tuple(tensor.shape), tensor.dtype)
        shared.tensor.copy_(tensor)
        return shared

    @property
    def fd(self) -> int:
        """The file descriptor of its memory, which processes can lock."""
        return self._fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (reduction.DupFd(self._fd), tuple(self.tensor.shape), self.tensor.dtype)

    def __del__(self) -> None:
        if self._fd >= 0:
            self._close(self._fd)


def _memory_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("fedsight")
    else:  # no anonymous memory files on this system: an unlinked temporary file does the same
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def _map(fd: int, size: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(fd, size), dtype=dtype, count=count).view(shape)


def _rebuild(handle: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Shared:
    shared = Shared.__new__(Shared)
    shared._fd = handle.detach()
    shared.tensor = _map(shared._fd, os.fstat(shared._fd).st_size, shape, dtype)
    return shared
