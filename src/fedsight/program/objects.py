"""A user's own Python objects as parts of a program, and own networks among them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args
from weakref import WeakValueDictionary

import cloudpickle
import torch
from pydantic_core import core_schema
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedsight.core.errors import ConfigError, ModelError, Problem
from fedsight.data.base import Words
from fedsight.models.base import Model
from fedsight.program.fingerprints import digest

OWN = "own"  # what `run.toml` calls a part that is an object
SIZES = ("channels", "height", "width", "classes")  # what a function that builds a network may take

Norm = Literal["group", "batch", "frozen"]

_ALIVE: WeakValueDictionary[tuple[str, str], Own] = WeakValueDictionary()  # by title and hash


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
        """The object that `run.toml` means by this hash, as long as it is in use: this one, or an
        equal one that is in use already."""
        return _ALIVE.setdefault((self.title, self.sha256), self)

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
        missing = Own(given["title"], given["sha256"])
        return _ALIVE.get((missing.title, missing.sha256), missing)
    raise ValueError("expected an object that was given from Python")


class OwnModel(Model):
    """A network of the user: a module class, a module, or a function that builds one."""

    registered: ClassVar[str | None] = OWN
    object: Own
    head: Words = ()  # names of the last layers; empty: the last one that has weights
    norm: Norm = "batch"  # as the user wrote it

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
    if isinstance(build, nn.Module):
        module = copy.deepcopy(build).train()
        _check_module(module, title, sizes)
        return module
    drawn = torch.get_rng_state()
    module = _call(build, title, sizes)
    _check_module(module, title, sizes)
    left = torch.get_rng_state()
    torch.set_rng_state(drawn)
    again = _call(build, title, sizes)
    _initialise(again, title, sizes)
    torch.set_rng_state(left)
    _check_equal(module, again, title)
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


def _check_module(module: nn.Module, title: str, sizes: Mapping[str, int]) -> None:
    _initialise(module, title, sizes)
    _check_parameters(module, title)
    _check_buffers(module, title)
    _check_answer(module, title, sizes)


def _initialise(module: nn.Module, title: str, sizes: Mapping[str, int]) -> None:
    """Let lazy layers (`nn.LazyLinear`) take their shapes from images, as they do when used."""
    if _is_lazy(module):
        try:
            with torch.no_grad():
                module.eval()(_images(2, sizes))
        except Exception as error:  # the user's code
            raise _failure(title, error, sizes) from error
        finally:
            module.train()
    if _is_lazy(module):
        raise ModelError(
            f"{title} has lazy layers that its forward does not use", "remove them, or use them"
        )


def _is_lazy(module: nn.Module) -> bool:
    return any(map(is_lazy, (*module.parameters(), *module.buffers())))


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
        if value.is_meta:
            raise ModelError(
                f"parameter '{name}' of {title} is on the device 'meta', and has no values",
                "build the network on the CPU; it is moved when it trains (speed.device)",
            )
        if not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"parameter '{name}' of {title} has values that are not finite",
                "start from other weights, or initialise it",
            )
    if not names:
        raise ModelError(f"{title} has no parameters", "there is nothing to train: add layers")


def _check_buffers(module: nn.Module, title: str) -> None:
    for name, buffer in module.named_buffers():
        if buffer.is_complex() or (buffer.is_floating_point() and buffer.dtype != torch.float32):
            raise ModelError(
                f"buffer '{name}' of {title} is {buffer.dtype}, and must be torch.float32",
                "register it as float32, or with persistent=False and an integer type",
            )


def _check_answer(module: nn.Module, title: str, sizes: Mapping[str, int]) -> None:
    """Try the network as training, testing and prediction use it; its buffers stay as they are."""
    state = {name: value.clone() for name, value in module.named_buffers()}
    for training, count in ((True, 2), (False, 2), (False, 1)):
        try:
            with torch.set_grad_enabled(training):
                module.train(training)
                images = _images(count, sizes)
                answer: object = torch.func.functional_call(module, state, (images,))
        except Exception as error:  # the user's code
            raise _failure(title, error, sizes, count) from error
        finally:
            module.train()
        if not isinstance(answer, Tensor):
            cause = f"{title} gives a {type(answer).__name__}, not a tensor"
            raise ModelError(cause, _cure(sizes))
        if tuple(answer.shape) != (count, sizes["classes"]):
            given = f"{count} image{'s' if count > 1 else ''} of {sizes['classes']} classes"
            raise ModelError(f"{title} gives {tuple(answer.shape)} for {given}", _cure(sizes))
        if not answer.is_floating_point() or not bool(torch.isfinite(answer).all()):
            kind = "values that are not finite" if answer.is_floating_point() else answer.dtype
            raise ModelError(f"{title} gives {kind} instead of logits", _cure(sizes))
        learns = any(value.requires_grad for value in module.parameters())
        if training and learns and not answer.requires_grad:
            raise ModelError(
                f"no gradient reaches the parameters of {title}: its answer is detached from them",
                "leave torch.no_grad, detach and conversions such as argmax out of its forward",
            )


def _images(count: int, sizes: Mapping[str, int]) -> Tensor:
    """Random images [count, c, h, w], with their channels last in memory, as in training."""
    shape = (count, *(sizes[name] for name in SIZES[:3]))
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return drawn.contiguous(memory_format=torch.channels_last)


def _failure(title: str, error: Exception, sizes: Mapping[str, int], count: int = 2) -> ModelError:
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    when = "a single image" if count == 1 else "images of this size"
    return ModelError(f"{title} fails on {when}: {why}", _cure(sizes))


def _cure(sizes: Mapping[str, int]) -> str:
    image = ", ".join(str(sizes[name]) for name in SIZES[:3])
    return (
        f"correct its forward, which must map images [b, {image}] to logits "
        f"[b, {sizes['classes']}], one number for each class"
    )


def _check_equal(one: nn.Module, other: nn.Module, title: str) -> None:
    """Each process builds the network anew, and it has to be the same one."""
    found, again = (
        {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for module in (one, other)
    )
    for name, value in found.items():
        if name not in again or not _same(value, again[name]):
            raise ModelError(
                f"{title} is built differently each time: '{name}' has other values",
                "draw initial values from torch's default generator, which is seeded for it, and "
                "from no other; or give a module, which is taken as it is",
            )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


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
    head: str | Sequence[str] = (),
    norm: Norm = "batch",
) -> OwnModel:
    """Your own network as a part of a program.

    `build` is a module class, a module, or a function that gives one; of `channels`, `height`,
    `width` and `classes` a class or function gets those that it has parameters for. The module
    maps images [b, channels, height, width] to logits [b, classes]. A module starts from the
    weights it has. `head` names the last layers, which fedrep keeps at the sites (default: the
    last layer that has weights). `norm="group"` makes every BatchNorm a GroupNorm; the default
    leaves the network as you wrote it.

    A parameter whose `requires_grad` is False neither trains nor travels.

    Raises ConfigError if it is none of these or cannot be pickled.
    """
    if not callable(build):
        cause = f"expected a torch.nn.Module class, a module or a function, got {build!r}"
        raise ConfigError([Problem("model", cause, "give for example model=MyNet")])
    names = (head,) if isinstance(head, str) else head
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        cause = f"head is {head!r}, not the name of a layer or a list of names"
        raise ConfigError([Problem("model.head", cause, 'write for example head="fc"')])
    if norm not in get_args(Norm):
        cause = f"norm is {norm!r}, not one of {', '.join(get_args(Norm))}"
        raise ConfigError([Problem("model.norm", cause, "leave it out to keep the network's own")])
    if isinstance(build, nn.Module) and _is_lazy(build):
        raise ConfigError(
            [
                Problem(
                    "model",
                    f"{type(build).__name__} has lazy layers that are not initialised yet",
                    "send a batch of images through it first, or give its class, or a function "
                    "that builds it",
                )
            ]
        )
    named = type(build) if isinstance(build, nn.Module) else build
    title = str(getattr(named, "__qualname__", None) or type(build).__name__)
    return OwnModel(object=Own.of(build, title, "model"), head=tuple(names), norm=norm)
