"""Fingerprints of Python objects: equal code and content give the same SHA-256.

Code is hashed as compiled: comments, line numbers, file names and the process do not matter.
Installed packages are hashed by name, not by their code.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_INSTALLED = tuple(
    str(Path(path).resolve())
    for key in ("stdlib", "platstdlib", "purelib", "platlib")
    for path in [sysconfig.get_paths()[key]]
)
_PACKAGE = str(Path(__file__).resolve().parents[1])
_IGNORED = frozenset(  # of a class: what does not say what it does
    {
        *("__module__", "__dict__", "__weakref__", "__doc__", "__firstlineno__", "__qualname__"),
        *("__static_attributes__", "__annotations__", "__annotate_func__", "__annotate__"),
        *("__abstractmethods__", "__parameters__", "__orig_bases__", "__private_attributes__"),
        *("_abc_impl", "__class_vars__", "__signature__", "registered", "__hash__"),
    }
)


def digest(value: Any) -> str:
    """SHA-256 of `value`: functions and classes by their code and what it refers to, tensors and
    modules by their content. Raises TypeError if the content cannot be determined."""
    return _Digest().of(value).hex()


def is_own(value: Any) -> bool:
    """Whether a class or function is the user's own code, not an installed package's."""
    name = getattr(value, "__module__", None)
    if name is None or name.split(".")[0] in ("builtins", "fedsight"):
        return False
    module = sys.modules.get(name)
    if name == "__main__" or module is None:
        return True
    path = getattr(module, "__file__", None)
    if path is None:  # built into Python
        return False
    return not str(Path(path).resolve()).startswith(_INSTALLED)


def own_place(error: BaseException) -> str | None:
    """File and line of the user's own code in which `error` was raised; None if it was not."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = str(Path(frame.filename).resolve())
        if not path.startswith((*_INSTALLED, _PACKAGE)) and "<frozen" not in frame.filename:
            return f"{frame.filename}, line {frame.lineno}"
    return None


class _Digest:
    """Walks through an object; objects that it meets again are referred to by number."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def of(self, value: Any) -> bytes:
        """The digest of one value."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return _hash(type(value).__name__, repr(value).encode())
        if isinstance(value, torch.dtype | torch.device | torch.Size | Path | range | slice):
            return _hash(type(value).__name__, str(value).encode())
        if isinstance(value, tuple | CodeType):  # equal ones may or may not be the same object
            return self._walk(value)
        if id(value) in self._seen:
            return _hash("again", str(self._seen[id(value)]).encode())
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        return self._walk(value)

    def _walk(self, value: Any) -> bytes:
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            data = flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
            still = isinstance(value, nn.Parameter) and not value.requires_grad  # it does not learn
            kind = "frozen" if still else "tensor"
            return _hash(kind, f"{value.dtype} {tuple(value.shape)}".encode(), data)
        if isinstance(value, np.ndarray | np.generic):
            array = np.ascontiguousarray(value)
            return _hash("array", f"{array.dtype} {array.shape}".encode(), array.tobytes())
        if isinstance(value, tuple | list):
            return _hash(type(value).__name__, *map(self.of, value))
        if isinstance(value, set | frozenset):
            return _hash("set", *sorted(_Digest().of(item) for item in value))
        if isinstance(value, Mapping):
            pairs = [self.of(one) for pair in value.items() for one in pair]
            return _hash("mapping", *pairs)
        if isinstance(value, CodeType):
            return self._code(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return _hash("method", self.of(value.__self__), self.of(value.__func__))
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType | BuiltinFunctionType):
            return _hash("name", f"{getattr(value, '__module__', '')}.{value.__name__}".encode())
        if isinstance(value, torch.Generator):
            return _hash("generator", self.of(value.get_state()))
        if isinstance(value, property | classmethod | staticmethod):
            inner = value.fget if isinstance(value, property) else value.__func__
            return _hash(type(value).__name__, self.of(inner))
        return self._object(value)

    def _code(self, code: CodeType) -> bytes:
        names = " ".join((*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars))
        constants = [self.of(one) for one in code.co_consts]
        return _hash("code", code.co_code, names.encode(), *constants)

    def _function(self, function: FunctionType) -> bytes:
        if not is_own(function):
            return _name(function)
        cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        used = [
            (name, function.__globals__[name])
            for name in _names(function.__code__)
            if name in function.__globals__
        ]
        return _hash(
            "function",
            self._code(function.__code__),
            self.of(function.__defaults__),
            self.of(function.__kwdefaults__),
            *map(self.of, cells),
            *(self.of(one) for pair in used for one in pair),
        )

    def _class(self, cls: type) -> bytes:
        if not is_own(cls):
            return _name(cls)
        parts = [cls.__qualname__.encode(), *(self.of(base) for base in cls.__bases__)]
        for name, value in sorted(vars(cls).items()):
            if name in _IGNORED or name.startswith(("__pydantic", "model_")):
                continue
            parts += [self.of(name), self.of(value)]
        fields: Mapping[str, Any] = getattr(cls, "__pydantic_fields__", {})
        parts += [self.of((name, repr(field))) for name, field in sorted(fields.items())]
        return _hash("class", *parts)

    def _object(self, value: Any) -> bytes:
        return _hash("object", self.of(type(value)), self.of(_state(value)))


def _state(value: Any) -> Any:
    """An object's state as pickle would store it; TypeError if that cannot be determined."""
    if isinstance(value, nn.Module):
        return {name: held for name, held in vars(value).items() if name != "training"}
    kind: Any = type(value)
    if kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
        slots = [name for cls in kind.__mro__ for name in getattr(cls, "__slots__", ())]
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        return {**held, **getattr(value, "__dict__", {})}
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return getattr(value, "__wrapped__", reduced)
    return [list(one) if hasattr(one, "__next__") else one for one in reduced]


def _names(code: CodeType) -> list[str]:
    """The names that code looks up, including those in nested functions."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return sorted({*code.co_names, *(name for one in inner for name in _names(one))})


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _name(value: Any) -> bytes:
    return _hash("name", f"{value.__module__}.{value.__qualname__}".encode())


def _hash(kind: str, *parts: bytes) -> bytes:
    found = hashlib.sha256(kind.encode())
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()
