"""The kinds of parts that a program has, and the registration of a user's own classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from torch import nn

from fedsight.aggregation.base import Aggregation, aggregations
from fedsight.algorithms.base import Algorithm, algorithms
from fedsight.compression.base import Codec, codecs
from fedsight.core.errors import ConfigError, FedSightError, Problem
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.data.augment.base import Augmentation, augmentations
from fedsight.data.base import Source, sources
from fedsight.data.partition import Split, splits
from fedsight.models.adapters.base import Adapter, adapters
from fedsight.models.base import Model, models
from fedsight.participation.base import Participation, participations
from fedsight.privacy.base import Mechanism, mechanisms
from fedsight.program.fingerprints import digest, is_own
from fedsight.program.objective import OwnTask
from fedsight.program.objects import SIZES, OwnModel, built, last_layer
from fedsight.program.plugins import PREFIX, Plugin
from fedsight.program.sites import OwnData
from fedsight.tasks.base import Task, tasks
from fedsight.tasks.metrics.base import Metric, metrics

# The kinds of parts: base class, registry, and the section of a config that names one.
KINDS: tuple[tuple[type[Settings], Registry[Any], str], ...] = (
    (Source, sources, "data"),
    (Split, splits, "split"),
    (Model, models, "model"),
    (Adapter, adapters, "adapter"),
    (Task, tasks, "task"),
    (Metric, metrics, "task"),
    (Augmentation, augmentations, "train"),
    (Algorithm, algorithms, "algorithm"),
    (Mechanism, mechanisms, "privacy"),
    (Participation, participations, "participation"),
    (Aggregation, aggregations, "aggregation"),
    (Codec, codecs, "codec"),
)
BASES: dict[str, type[Settings]] = {registry.kind: base for base, registry, _ in KINDS}

# Parts that are objects from Python, by section; `run.toml` calls them "own".
OWN_PARTS: dict[str, type[Settings]] = {"data": OwnData, "model": OwnModel, "task": OwnTask}

T = TypeVar("T")


def register(name: str, **facts: str) -> Callable[[T], T]:
    """Decorator: make a class a part that programs can name.

    The class is a subclass of `Algorithm`, `Model`, `Adapter`, `Source`, `Split`, `Task`, `Metric`,
    `Augmentation`, `Codec`, `Aggregation`, `Participation` or `Mechanism`; or it is a
    `torch.nn.Module`, or a function that builds one, which becomes a model: it is passed those of
    `channels`, `height`, `width` and `classes` that it has parameters for. `facts` describe the
    part (paper, licence). Raises FedSightError for anything else, and for a name that is taken.
    """
    if not isinstance(name, str) or not name.strip():
        raise FedSightError(
            f"{name!r:.80} is not the name of a part", 'write @fedsight.register("my-name")'
        )

    def decorate(given: T) -> T:
        part: Any = given
        if not (isinstance(given, type) and issubclass(given, Settings)):
            part = _model_of(given)
        registry = _registry(part)
        registry.add(name, **facts)(part)
        return given

    return decorate


class _ModuleModel(Model):
    """A model built by a module class or a function; a subclass sets `maker`."""

    maker: ClassVar[Callable[..., nn.Module]]
    norm: Literal["group", "batch", "frozen"] = "batch"  # as the user wrote it

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """The module, and its last layer."""
        sizes = dict(zip(SIZES, (channels, height, width, classes), strict=True))
        module = built(type(self).maker, self.title, sizes)
        return module, last_layer(module)


def _model_of(given: Any) -> type[Model]:
    if isinstance(given, type) and not issubclass(given, nn.Module):
        kinds = ", ".join(base.__name__ for base, _, _ in KINDS)
        raise FedSightError(
            f"{given.__qualname__} is neither a part nor a torch.nn.Module",
            f"derive it from one of: {kinds}, torch.nn.Module",
        )
    if not callable(given) or isinstance(given, nn.Module):
        raise FedSightError(
            f"{given!r:.80} is not a class or function", "register a part, or a torch.nn.Module"
        )
    about = {"__module__": given.__module__, "__qualname__": given.__qualname__}
    names = {**about, "__doc__": given.__doc__ or "", "maker": staticmethod(given)}
    return type(given.__name__, (_ModuleModel,), names)


def adopt(part: Settings) -> Plugin | None:
    """Register the class of a part, if it is the user's own and not from a plug-in file.

    A class that is not registered under a name gets the class's name. Returns what the fingerprint
    must cover; None for a part of this package, of an installed one, or of a plug-in file. Raises
    ConfigError if the name is taken or the class cannot be fingerprinted.
    """
    cls = type(part)
    if not is_own(cls) or cls.__module__.startswith(PREFIX):
        return None
    registry = _registry(cls)
    where = next(section for base, _, section in KINDS if issubclass(cls, base))
    try:
        if "registered" not in vars(cls):  # it may have inherited a name
            registry.add(cls.__name__)(cls)
        sha256 = digest(cls)
    except FedSightError as error:
        raise ConfigError([Problem(where, error.cause, error.cure)]) from None
    except TypeError as error:
        cause = f"the class {cls.__name__} cannot be fingerprinted: {error}"
        raise ConfigError([Problem(where, cause, "put it into a plug-in file")]) from error
    return Plugin(f"{registry.kind} {cls.registered}", sha256)


def absent(code: Sequence[Plugin]) -> list[Problem]:
    """A problem for each class that a run got from Python and that is not available now."""
    return [
        Problem(
            "plugins",
            f"this run uses the {plugin.title}, which was given from Python (SHA-256 "
            f"{plugin.sha256[:12]}...) and is not available, or has changed",
            "give it again: fedsight.resume(folder, ...) and fedsight.load(folder, ...) take the "
            "same keywords as fedsight.run; parts of a plug-in file are found without that",
        )
        for plugin in code
        if plugin.path is None and not _at_hand(plugin)
    ]


def _at_hand(plugin: Plugin) -> bool:
    """Whether a class that was given from Python is registered in this process, unchanged."""
    for _, registry, _ in KINDS:
        kind, space, name = plugin.title.partition(f"{registry.kind} ")
        if not kind and space and name in registry.names():
            return digest(registry.get(name)) == plugin.sha256
    return False


def _registry(cls: type) -> Registry[Any]:
    for base, registry, _ in KINDS:
        if issubclass(cls, base):
            return registry
    kinds = ", ".join(base.__name__ for base, _, _ in KINDS)
    raise FedSightError(f"{cls.__qualname__} is not a part", f"derive it from one of: {kinds}")
