"""A user's own Python objects as parts of a program, and own networks among them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

import cloudpickle
import torch
from pydantic_core import core_schema
from torch import Tensor, nn

from fedsight.core.errors import ConfigError, ModelError, Problem
from fedsight.data.base import Words
from fedsight.models.base import Model
from fedsight.program.fingerprints import digest

OWN = "own"  # what `run.toml` calls a part that is an object
SIZES = ("channels", "height", "width", "classes")  # what a function that builds a network may take

_ALIVE: WeakValueDictionary[str, Own] = WeakValueDictionary()  # by hash, for `run.toml`


@dataclass(frozen=True)
class Own:
    """A user's object: equal to another one of the same content, in files told by its hash.

    `sent`: worker processes need the object itself. `value` is None where `run.toml` was read and
    the object was not given again.
    """

    title: str
    sha256: str
    value: Any = field(default=None, compare=False, repr=False)
    sent: bool = field(default=True, compare=False, repr=False)

    @classmethod
    def of(cls, value: Any, title: str, where: str) -> Own:
        """`value`, hashed. Raises ConfigError if it cannot be hashed or pickled."""
        try:
            sha256 = digest(value)
            cloudpickle.dumps(value)
        except Exception as error:  # the user's object: pickling runs its code
            cause = f"{title} cannot be sent to other processes: {error}"
            cure = (
                "it holds something that cannot be pickled, such as an open file, a lock or a "
                "generator; create it inside the function or method that uses it"
            )
            raise ConfigError([Problem(where, cause, cure)]) from error
        return cls(title, sha256, value).remember()

    def remember(self) -> Own:
        """Make this object the one that `run.toml` means by its hash, as long as it is in use."""
        _ALIVE[self.sha256] = self
        return self

    @property
    def missing(self) -> bool:
        """Whether only the hash is known."""
        return self.value is None

    def problem(self, where: str) -> Problem:
        """What to say where the object is needed and missing."""
        return Problem(
            where,
            f"this run uses {self.title}, an object that was given from Python (SHA-256 "
            f"{self.sha256[:12]}...) and is not at hand, or has changed",
            f"give the same object again, for example fedsight.resume(folder, {where}=...) or "
            f"fedsight.load(folder, {where}=...); parts of a plug-in file are found without that",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Own, (self.title, self.sha256, self.value if self.sent else None, self.sent)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _own,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda own: {"title": own.title, "sha256": own.sha256}
            ),
        )


def _own(given: Any) -> Own:
    if isinstance(given, Own):
        return given
    if isinstance(given, Mapping) and set(given) == {"title", "sha256"}:
        return _ALIVE.get(given["sha256"]) or Own(given["title"], given["sha256"])
    raise ValueError("expected an object that was given from Python")


class OwnModel(Model):
    """A network of the user: a module class, a module, or a function that builds one."""

    registered: ClassVar[str | None] = OWN
    object: Own
    head: Words = ()  # names of the last layers; empty: the last one that has weights
    norm: Literal["group", "batch", "frozen"] = "batch"  # as the user wrote it

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """The user's module. Raises ModelError for one that cannot be trained in a federation."""
        if self.object.missing:
            found = self.object.problem("model")
            raise ModelError(found.cause, found.cure)
        sizes = dict(zip(SIZES, (channels, height, width, classes), strict=True))
        module = built(self.object.value, self.object.title, sizes)
        return module, self.head or last_layer(module)

    @property
    def title(self) -> str:
        """The name of the class or function."""
        return self.object.title

    def check(self) -> list[Problem]:
        """Whether the object is at hand."""
        if self.object.missing:
            return [self.object.problem("model")]
        return super().check()


def built(build: Any, title: str, sizes: Mapping[str, int]) -> nn.Module:
    """The module that `build` (a class, a function, a module) gives for `sizes`, by `SIZES`.

    Raises ModelError for one that cannot be built, or not be trained in a federation.
    """
    module = (
        copy.deepcopy(build).train() if isinstance(build, nn.Module) else _call(build, title, sizes)
    )
    _check_parameters(module, title)
    _check_answer(module, title, sizes)
    return module


def _call(build: Any, title: str, sizes: Mapping[str, int]) -> nn.Module:
    wanted = inspect.signature(build).parameters
    unknown = [
        name
        for name, one in wanted.items()
        if one.default is one.empty
        and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        and name not in sizes
    ]
    if unknown:
        raise ModelError(
            f"{title} needs {', '.join(unknown)}, and only {', '.join(SIZES)} are known",
            "give those a default, or give a function that builds the network: "
            "model=lambda: MyNet(64)",
        )
    try:
        module = build(**{name: value for name, value in sizes.items() if name in wanted})
    except Exception as error:  # the user's code
        raise ModelError(
            f"{title} cannot be built: {type(error).__name__}: {error}", "correct its code"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{title} returns {type(module).__name__}, not a torch.nn.Module",
            "return the module",
        )
    return module


def _check_parameters(module: nn.Module, title: str) -> None:
    names: dict[int, str] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        if id(value) in names:
            raise ModelError(
                f"{title} has one parameter under two names: '{names[id(value)]}' and '{name}'",
                "shared parameters are not supported: register the parameter once and use it "
                "from there in forward",
            )
        names[id(value)] = name
        if value.dtype != torch.float32:
            raise ModelError(
                f"parameter '{name}' of {title} is {value.dtype}, and must be torch.float32",
                "build the network in float32, and hold what is not trained in a buffer; half "
                "precision is a speed setting (speed.precision)",
            )
    if not names:
        raise ModelError(f"{title} has no parameters", "there is nothing to train: add layers")
    for name, buffer in module.named_buffers():
        if buffer.is_complex() or (buffer.is_floating_point() and buffer.dtype != torch.float32):
            raise ModelError(
                f"buffer '{name}' of {title} is {buffer.dtype}, and must be torch.float32",
                "register it as float32, or with persistent=False and an integer type",
            )


def _check_answer(module: nn.Module, title: str, sizes: Mapping[str, int]) -> None:
    """Try the network on two black images; its running statistics stay as they are."""
    image = tuple(sizes[name] for name in SIZES[:3])
    cure = (
        f"correct its forward, which must map images [b, {', '.join(map(str, image))}] to logits "
        f"[b, {sizes['classes']}], one number for each class"
    )
    state = {name: value.clone() for name, value in module.named_buffers()}
    try:
        with torch.no_grad():
            module.eval()
            answer: object = torch.func.functional_call(module, state, (torch.zeros(2, *image),))
    except Exception as error:  # the user's code
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{title} fails on images of this size: {why}", cure) from error
    finally:
        module.train()
    if not isinstance(answer, Tensor):
        raise ModelError(f"{title} gives a {type(answer).__name__}, not a tensor", cure)
    if tuple(answer.shape) != (2, sizes["classes"]):
        shape = tuple(answer.shape)
        raise ModelError(
            f"{title} gives {shape} for two images of {sizes['classes']} classes", cure
        )


def last_layer(module: nn.Module) -> tuple[str, ...]:
    """The name of the last layer that has parameters and is not a norm."""
    found = [
        name
        for name, part in module.named_modules()
        if name and list(part.parameters(recurse=False)) and "Norm" not in type(part).__name__
    ]
    return tuple(found[-1:])


def model(
    build: type[nn.Module] | nn.Module | Callable[..., nn.Module],
    *,
    head: str | Iterable[str] = (),
    norm: Literal["group", "batch", "frozen"] = "batch",
) -> OwnModel:
    """Your own network as a part of a program.

    `build` is a module class, a module, or a function that gives one; of `channels`, `height`,
    `width` and `classes` a class or function gets those that it has parameters for. The module
    maps images [b, channels, height, width] to logits [b, classes]. A module starts from the
    weights it has. `head` names the last layers, which fedrep keeps at the sites (default: the
    last layer that has weights). `norm="group"` makes every BatchNorm a GroupNorm; the default
    leaves the network as you wrote it.

    Raises ConfigError if it is none of these or cannot be pickled.
    """
    if not callable(build):
        cause = f"expected a torch.nn.Module class, a module or a function, got {build!r}"
        raise ConfigError([Problem("model", cause, "give for example model=MyNet")])
    named = type(build) if isinstance(build, nn.Module) else build
    title = str(getattr(named, "__qualname__", None) or type(build).__name__)
    names = (head,) if isinstance(head, str) else tuple(head)
    return OwnModel(object=Own.of(build, title, "model"), head=names, norm=norm)
