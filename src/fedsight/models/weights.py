"""Loads pretrained weights from a local file, if its SHA-256 is the configured one."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.models.low_rank import merged

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # side heads of Inception, for training only
_SHOWN = 5  # names in a message
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_FORMATS = "give a .safetensors file, or a .pth file that holds the network's state_dict()"
_FOREIGN = {
    ".h5": "a Keras or HDF5 file",
    ".hdf5": "a Keras or HDF5 file",
    ".keras": "a Keras file",
    ".onnx": "an ONNX file",
    ".pb": "a TensorFlow file",
    ".tflite": "a TensorFlow Lite file",
    ".msgpack": "a Flax file",
    ".npz": "a NumPy file",
    ".npy": "a NumPy file",
    ".engine": "a TensorRT file",
    ".gguf": "a GGUF file",
}


def load_weights(
    module: nn.Module,
    path: Path,
    sha256: str,
    head: frozenset[str],
    rename: Callable[[str], str | None] | None = None,
) -> tuple[str, ...]:
    """Copy the tensors of a .safetensors or .pth file into `module`; returns notes for the user.

    `sha256` is the file's hash or its first 8 or more hex digits, as in torch hub's file names.
    All tensors must be present and fit, with four exceptions, each noted but the last:
    - a head (`head` are its tensors' names) that is missing or has another shape keeps its
      initialisation;
    - a first convolution [o, k, ...] for k input channels where the module has c: each channel
      gets the sum over the k divided by c, so an image with equal values in all channels gets the
      same result (such as grey images with weights for colour);
    - BatchNorm statistics in the file are left out where the module has GroupNorm;
    - frozen norms in the file (scale and shift) are taken as BatchNorms with the same outputs.

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
    _thaw(found, own, module)
    _drop_auxiliary(found, own, path, notes)
    _fit_head(found, own, head, path, notes)
    _fit_stem(found, module, path, notes)
    _refuse_misfits(found, own, head, path)
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)
    return tuple(notes)


def found_norms(path: Path, sha256: str) -> Literal["none", "batch", "frozen"] | None:
    """Which norms with statistics the file holds; None for one that cannot be read."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:  # the header is enough
                names = set(file.keys())
        else:
            names = set(read_weights(path, sha256))
    except (ModelError, OSError, SafetensorError):
        return None
    if any(name.rpartition(".")[2] == "running_var" for name in names):
        return "batch"
    scaled = {name.removesuffix("scale") for name in names if name.endswith(".scale")}
    return "frozen" if any(f"{layer}shift" in names for layer in scaled) else "none"


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file by name; ModelError as in `load_weights`."""
    data = _verified(path, sha256)
    if title := foreign(path, data[:16]):
        raise ModelError(f"the weights '{path}' are {title}, not tensors by name", _FORMATS)
    try:
        if path.suffix == ".safetensors":
            state: object = load_safetensors(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(*_unpicklable(path, str(error))) from error
    except Exception as error:  # the readers may raise anything for a damaged file
        raise ModelError(
            f"the weights '{path}' cannot be read: the file is damaged, or not what its suffix "
            "says",
            f"fetch it again, or {_FORMATS}",
        ) from error
    if isinstance(state, Mapping):  # common wrappers of training scripts
        for key in ("state_dict", "model"):
            state = state[key] if isinstance(state.get(key), Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(
            f"the weights '{path}' are not a table of tensors by name",
            "save the network's state_dict() and give that file",
        )
    return merged({str(name): value for name, value in state.items()})


def unusable(path: Path) -> tuple[str, str] | None:
    """Cause and cure for a path that can be told not to be a file of weights; else None."""
    try:
        if path.is_dir():
            return f"'{path}' is a folder, not a file of weights", wanted_file(path)
        if not path.is_file():
            return f"there is no file '{path}'", "give a local file"
        with path.open("rb") as file:
            title = foreign(path, file.read(16))
    except OSError as error:  # no permission, or a name that is too long for a file
        return f"the file '{path}' cannot be opened: {error.strerror}", "give a local file"
    return (f"'{path}' is {title}, not weights of PyTorch", _FORMATS) if title else None


def foreign(path: Path, start: bytes) -> str | None:
    """What the file is if it is not weights of PyTorch, from its suffix and its first bytes."""
    if start.startswith(b"\x89HDF\r\n"):
        return "a Keras or HDF5 file"
    return _FOREIGN.get(path.suffix.lower())


def _unpicklable(path: Path, reason: str) -> tuple[str, str]:
    """Cause and cure for a pickle that holds more than tensors, or is damaged."""
    match = re.search(r"(?:GLOBAL |class )\[?'?([\w.]+)'? ", reason)
    if match is None and "Unsupported global" not in reason and "Unsupported class" not in reason:
        cause = f"the weights '{path}' cannot be read: this is not a file of PyTorch weights"
        return cause, f"fetch it again, or {_FORMATS}"
    what = f" ({match[1]})" if match else ""
    return (
        f"the weights '{path}' cannot be read: the file holds Python objects{what}, not only "
        "tensors, and loading them could run any code",
        "load it where you trust it, and save the tensors alone: "
        "safetensors.torch.save_file(network.state_dict(), 'weights.safetensors')",
    )


def _verified(path: Path, sha256: str) -> bytes:
    if path.is_dir():
        raise ModelError(f"the weights '{path}' are a folder, not a file", wanted_file(path))
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


def wanted_file(folder: Path) -> str:
    """The cure for a folder that was given as weights: the file in it, if there is one."""
    inside = sorted(path.name for path in folder.glob("*") if path.suffix in _SUFFIXES)
    if "model.safetensors" in inside:
        return f"give the file in it: {folder / 'model.safetensors'}"
    return f"give the file in it: {folder / inside[0]}" if inside else _FORMATS


def _thaw(found: dict[str, Tensor], own: Mapping[str, Tensor], module: nn.Module) -> None:
    """Make the frozen norms of the file BatchNorms where the module has BatchNorm or GroupNorm."""
    layers = [name.removesuffix(".scale") for name in found if name.endswith(".scale")]
    for layer in layers:
        if f"{layer}.scale" in own or f"{layer}.weight" not in own or f"{layer}.shift" not in found:
            continue
        scale, shift = found.pop(f"{layer}.scale"), found.pop(f"{layer}.shift")
        eps = float(module.get_submodule(layer).eps)  # type: ignore[arg-type]
        found |= {
            f"{layer}.weight": scale,
            f"{layer}.bias": shift,
            f"{layer}.running_mean": torch.zeros_like(scale),
            f"{layer}.running_var": torch.full_like(scale, 1 - eps),
        }


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
        notes.append(f"'{path.name}': auxiliary heads were left out")
    if statistics:
        notes.append(
            f"'{path.name}': BatchNorm statistics were left out, because model.norm = 'group' has "
            "no place for them: the network starts with other outputs than the pretrained one; "
            "norm = 'frozen' keeps them"
        )


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
    theirs = [name for name in found if name.rpartition(".")[0] in layers]
    why = "the file has none"
    if theirs:
        why = "the file's has another shape"
        rows = [{len(t[n]) for n in head if n in t and t[n].dim()} for t in (found, own)]
        if all(len(one) == 1 for one in rows) and rows[0] != rows[1]:
            why = f"the file's has {rows[0].pop()} outputs, this network {rows[1].pop()}"
    for name in theirs:
        del found[name]
    notes.append(f"'{path.name}': the head is newly initialised and has to be learnt: {why}")


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
        notes.append(f"'{path.name}': the first layer's {theirs.shape[1]} channels became {inputs}")


def _refuse_misfits(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], head: frozenset[str], path: Path
) -> None:
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    layers = {name.rpartition(".")[0] for name in head}
    missing = [
        name
        for name in own
        if name not in found and name.rpartition(".")[0] not in layers and name not in counters
    ]
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
    if not troubles:
        return
    cure = "use weights that were made for this architecture"
    if missing and not unknown and not misshapen and _only_statistics(missing):
        cure = "the file has no BatchNorm statistics: set model.norm = 'group', or leave it out"
    raise ModelError(f"the weights '{path}' do not fit; tensors: {'; '.join(troubles)}", cure)


def _only_statistics(names: list[str]) -> bool:
    return all(name.rpartition(".")[2] in _STATISTICS for name in names)
