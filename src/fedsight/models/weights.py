"""Loads pretrained weights from a local file, if its SHA-256 is the configured one."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from fedsight.core.errors import ModelError

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # side heads of Inception, for training only
_SHOWN = 5  # names in a message


def load_weights(
    module: nn.Module,
    path: Path,
    sha256: str,
    head: frozenset[str],
    rename: Callable[[str], str | None] | None = None,
) -> tuple[str, ...]:
    """Copy the tensors of a .safetensors or .pth file into `module`; returns notes for the user.

    `sha256` is the file's hash or its first 8 or more hex digits, as in torch hub's file names.
    All tensors must be present and fit, with three exceptions, each noted:
    - a head (`head` are its tensors' names) that is missing or has another shape keeps its
      initialisation;
    - a first convolution [o, k, ...] for k input channels where the module has c: each channel
      gets the sum over the k divided by c, so an image with equal values in all channels gets the
      same result (such as grey images with weights for colour);
    - BatchNorm statistics in the file are left out where the module has GroupNorm.

    `rename` maps the file's tensor names to the module's, or to None if a tensor is not used.

    Raises ModelError for a file that is missing, has another hash or is corrupt, and for tensors
    that are missing, misshapen or unknown to the module (such as those of a deeper variant).
    """
    state = read_weights(path, sha256)
    own = {**dict(module.named_parameters()), **_persistent_buffers(module)}
    notes: list[str] = []
    found = dict(state)
    if rename is not None:
        pairs = [(rename(name), value) for name, value in found.items()]
        found = {name: value for name, value in pairs if name is not None}
    _drop_auxiliary(found, own, path, notes)
    _fit_head(found, own, head, path, notes)
    _fit_stem(found, module, path, notes)
    _refuse_misfits(found, own, head, path)
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)
    return tuple(notes)


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file by name; ModelError as in `load_weights`."""
    data = _verified(path, sha256)
    try:
        if path.suffix == ".safetensors":
            state: object = load_safetensors(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the readers may raise anything for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the weights '{path}' cannot be read: {reason}",
            "give a .safetensors file, or a .pth file that holds tensors only",
        ) from error
    if isinstance(state, Mapping):  # common wrappers of training scripts
        for key in ("state_dict", "model"):
            state = state[key] if isinstance(state.get(key), Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(
            f"the weights '{path}' are not a table of tensors by name",
            "save the network's state_dict() and give that file",
        )
    return {str(name): value for name, value in state.items()}


def _verified(path: Path, sha256: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise ModelError(
            f"the weights '{path}' have no hash to check against",
            f"run `sha256sum {path}` and set model.sha256 to the result",
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"the weights '{path}' cannot be read: {error.strerror}", "give a local file"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(sha256.lower()):
        raise ModelError(
            f"the weights '{path}' have the SHA-256 {digest}, not {sha256}",
            "the file is damaged or a different one: fetch it again, or set the hash you trust",
        )
    return data


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    persistent = module.state_dict(keep_vars=True)
    return {name: value for name, value in module.named_buffers() if name in persistent}


def _drop_auxiliary(
    found: dict[str, Tensor], own: Mapping[str, Tensor], path: Path, notes: list[str]
) -> None:
    spare = [n for n in found if n not in own and n.startswith(_AUXILIARY)]
    statistics = [
        name
        for name in found
        if name not in own
        and name.rpartition(".")[2] in _STATISTICS
        and f"{name.rpartition('.')[0]}.weight" in own
    ]
    for name in (*spare, *statistics):
        del found[name]
    if spare:
        notes.append(f"'{path}': auxiliary heads were left out")
    if statistics:
        notes.append(f"'{path}': BatchNorm statistics were left out, as the model has GroupNorm")


def _fit_head(
    found: dict[str, Tensor],
    own: Mapping[str, Tensor],
    head: frozenset[str],
    path: Path,
    notes: list[str],
) -> None:
    if all(name in found and found[name].shape == own[name].shape for name in head):
        return
    layers = {name.rpartition(".")[0] for name in head}
    for name in [n for n in found if n.rpartition(".")[0] in layers]:
        del found[name]
    notes.append(
        f"'{path}': the head is newly initialised: the file's is missing or for other classes"
    )


def _fit_stem(found: dict[str, Tensor], module: nn.Module, path: Path, notes: list[str]) -> None:
    stem = next(((n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d)), None)
    if stem is None or stem[1].groups != 1:
        return
    name, (out, inputs, *kernel) = f"{stem[0]}.weight", stem[1].weight.shape
    theirs = found.get(name)
    if theirs is None or theirs.dim() != 4 or theirs.shape[1] == inputs:
        return
    if (theirs.shape[0], *theirs.shape[2:]) == (out, *kernel):
        found[name] = theirs.sum(1, keepdim=True).div(inputs).expand(out, inputs, *kernel)
        notes.append(f"'{path}': the first layer's {theirs.shape[1]} channels became {inputs}")


def _refuse_misfits(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], head: frozenset[str], path: Path
) -> None:
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = [n for n in own if n not in found and n not in head and n not in counters]
    unknown = [name for name in found if name not in own]
    misshapen = [
        f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in found.items()
        if name in own and value.shape != own[name].shape
    ]
    troubles = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for what, names in (
            ("missing", missing),
            ("of another shape", misshapen),
            ("unknown to the model", unknown),
        )
        if names
    ]
    if troubles:
        raise ModelError(
            f"the weights '{path}' do not fit; tensors: {'; '.join(troubles)}",
            "use weights that were made for this architecture",
        )
