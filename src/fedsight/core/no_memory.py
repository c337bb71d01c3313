"""What PyTorch says when memory runs out, of a device or of the machine."""

from __future__ import annotations

import torch

# What its mere RuntimeErrors say.
_NO_MEMORY = (
    *("not enough memory", "can't allocate memory", "MPS backend out of memory"),
    "size calculation overflowed",  # of more than 2^63 bytes
)
_NO_NUMBER = "Overflow when unpacking"  # a TypeError: of 2^63 values or more in a row


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if type(error) is TypeError:
        return _NO_NUMBER in str(error)
    return type(error) is RuntimeError and any(text in str(error) for text in _NO_MEMORY)
