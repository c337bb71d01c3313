"""What an adapter is: a few parameters that learn, and travel, in place of a network's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

from torch import nn

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.layout import Layout
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.models.base import Network
from fedsight.models.patterns import Patterns, instead_of, matches

SHOWN = 6  # names of layers in a message


class Adapter(Settings):
    """What of a network learns: `[adapter]` in the config. A new one costs one file here."""

    adapts: ClassVar[bool] = True  # whether it changes what learns
    # whether what learns is multiplied by something else that learns, so that the mean of what it
    # changes is not the change by the mean
    multiplies: ClassVar[bool] = False

    @abstractmethod
    def adapt(self, network: Network, seed: int) -> Network:
        """`network`, changed in place so that the adapter learns and the rest is frozen.

        Outputs stay the same. Raises ConfigError where a setting does not fit the network.
        """


class LayerAdapter(Adapter):
    """An adapter of chosen layers; the head learns as a whole beside it."""

    # names or patterns of the layers to adapt ("blocks.6", "*.conv_pw", "last:3" for the last three
    # blocks); none: all that are suited
    layers: Patterns = ()
    head: bool = True  # whether the head learns too

    def adapt(self, network: Network, seed: int) -> Network:
        """Adapt the chosen layers, and freeze all tensors but those that learn."""
        suited = self._suited(network)
        chosen = {
            name: part
            for name, part in suited.items()
            if (self._named(name, network) if self.layers else self.default(part))
        }
        if problems := [*self._unknown(network, suited), *self.problems(chosen, suited)]:
            raise ConfigError(problems)
        learning = self.learning(network, chosen, seed)
        if self.head:
            learning |= network.head - network.frozen
        names = frozenset(entry.name for entry in Layout.of(network.module).entries)
        note = self.note(len(chosen), len(suited))
        return replace(network, frozen=names - learning, notes=(*network.notes, note))

    @abstractmethod
    def learning(
        self, network: Network, chosen: Mapping[str, nn.Module], seed: int
    ) -> frozenset[str]:
        """Adapt the `chosen` layers; the names of the tensors that learn, without the head's."""

    @abstractmethod
    def suits(self, part: nn.Module) -> bool:
        """Whether a layer can have such an adapter."""

    def default(self, part: nn.Module) -> bool:
        """Whether a suited layer has one unless layers are named."""
        return True

    def problems(
        self, chosen: Mapping[str, nn.Module], suited: Mapping[str, nn.Module]
    ) -> list[Problem]:
        """What the settings do not fit in the `chosen` layers."""
        return []

    @abstractmethod
    def note(self, chosen: int, suited: int) -> str:
        """What the user is told of the numbers of layers."""

    def _suited(self, network: Network) -> dict[str, nn.Module]:
        return {
            name: part
            for name, part in network.module.named_modules()
            if self.suits(part) and not in_head(name, network)
        }

    def _named(self, name: str, network: Network) -> bool:
        return any(covers(pattern, name, network) for pattern in self.layers)

    def _unknown(self, network: Network, suited: Iterable[str]) -> Iterator[Problem]:
        """Patterns that name no layer that could have the adapter."""
        if not suited:
            cause = f"no layer of the network can have the adapter '{self.registered}'"
            yield Problem("adapter.name", cause, "leave it out, or choose another network")
            return
        for pattern in self.layers:
            if any(covers(pattern, name, network) for name in suited):
                continue
            inside = {
                name: type(part).__name__
                for name, part in network.module.named_modules()
                if name and not any(part.children()) and covers(pattern, name, network)
            }
            cause = f"no layer of the network is called '{pattern}'"
            stems = {f"{stem}.weight" for name in suited for stem in _stems(name)}
            cure = instead_of(pattern, network, stems, head=False)
            if inside:
                kinds = ", ".join(dict.fromkeys(inside.values()))
                cause = f"'{pattern}' names no layer that can have this adapter, but: {kinds}"
                cure = f"layers that can have it: {listed(suited)}"
            if pattern == "head" or (inside and all(in_head(name, network) for name in inside)):
                cause = f"'{pattern}' names the head, which learns as a whole beside the adapter"
                cure = f"leave it out; {cure}" if inside else "leave it out"
            yield Problem("adapter.layers", cause, cure)


def in_head(layer: str, network: Network) -> bool:
    """Whether the layer is, or is in, the head."""
    return any(tensor.startswith(f"{layer}.") for tensor in network.head)


def covers(pattern: str, layer: str, network: Network) -> bool:
    """Whether `pattern` names the layer, or a module that contains it."""
    return pattern == layer or any(
        matches(name, pattern, network) for name in (layer, f"{layer}.weight")
    )


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    known = list(names)
    more = len(known) - SHOWN
    return ", ".join(known[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _stems(layer: str) -> Iterator[str]:
    """The layer, and the modules that contain it."""
    while layer:
        yield layer
        layer = layer.rpartition(".")[0]


adapters: Registry[Adapter] = Registry("adapter", "fedsight.models.adapters")
