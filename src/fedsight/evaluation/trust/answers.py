"""What a model says of images: the scores of the classes, and what its last layer sees."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fedsight.client.members import Members
from fedsight.client.step import Client
from fedsight.core.errors import ModelError
from fedsight.core.threads import one_thread
from fedsight.core.types import Batch
from fedsight.evaluation.evidence import answered
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.unlike import mixing
from fedsight.models.base import Network
from fedsight.models.features import linear_head
from fedsight.program.site_data import SiteData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """Of images: logits [n, classes], class numbers [n], the number of the site of each [n] (-1:
    of none), and mixed features [n, d], or [n, 0] where they were not asked for."""

    logits: Tensor
    labels: Tensor
    origins: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, chosen: Tensor) -> Answers:
        """Those of the images that are `chosen`: positions [k] or bool [n]."""
        return Answers(
            self.logits[chosen], self.labels[chosen], self.origins[chosen], self.features[chosen]
        )  # fmt: skip

    @property
    def finite(self) -> Answers:
        """The same answers, but where an image's are not all finite, all its logits are 0."""
        known = torch.isfinite(self.logits).all(1, keepdim=True)
        return replace(self, logits=torch.where(known, self.logits, 0.0))

    def of_site(self, site: int) -> Answers:
        """Those of the images of one site."""
        return self.some(self.origins == site)


@dataclass(frozen=True)
class Respondent:
    """Asks models for their answers: `client` gives one with the model of a site loaded, or with
    the common one (-1); None for a site that never trained. `apart`: each site has its own.

    `network` is that of the common model, with so many `classes`.
    """

    client: Callable[[int], Client | None]
    network: Network
    classes: int
    apart: bool = False

    @classmethod
    def of(cls, final: Final, apart: bool) -> Respondent:
        """Asks the model that a run ended with: one for all images, or one of each site."""
        federation = final.federation
        clients = Members(federation, lambda member: Client(member, final.speed))

        def loaded(number: int) -> Client | None:
            site, kept = None if number < 0 else number, dict[str, Tensor]()
            if site is not None:
                kept = dict(final.memory.latest(federation.partition.name(site)))
            return clients.loaded(final.vector, site, kept)

        return cls(loaded, clients.of(None).network, len(federation.dataset.classes), apart)

    @property
    def sees_features(self) -> bool:
        """Whether all images have features that can be compared: those before one linear layer."""
        return not self.apart and head_of(self.network) is not None

    @property
    def head(self) -> str:
        """The name of that layer."""
        return next(iter(self.network.head)).rpartition(".")[0]

    @cached_property
    def mixing(self) -> Tensor:
        """What its features are mixed by [features, d]."""
        return mixing(linear_head(self.network).in_features)

    def answers(self, data: Sequence[SiteData], features: bool = False) -> Answers:
        """The answers to the images, one site after another; sites that never trained have none."""
        found = [one for images in data if (one := self._of(images, features)) is not None]
        if not found:
            none = torch.zeros(0, dtype=torch.int64)
            return Answers(torch.zeros(0, self.classes), none, none, torch.zeros(0, 0))
        return Answers(
            torch.cat([one.logits for one in found]), torch.cat([one.labels for one in found]),
            torch.cat([one.origins for one in found]), torch.cat([one.features for one in found]),
        )  # fmt: skip

    def singly(self, data: SiteData) -> Answers:
        """The answers to the images, each of which is read and asked by itself, so that none can
        change another's. Of one that cannot be, the model knows nothing: its logits are 0."""
        client, told = self.client(-1), False
        assert client is not None
        logits = torch.zeros(len(data), self.classes)
        client.model.eval()
        with one_thread(), torch.inference_mode():
            for position in torch.arange(len(data)).split(1):
                try:
                    logits[position] = client.model(client.batch(data, position).x).float().cpu()
                except Exception as error:  # the first reason stays in this machine's log
                    if not told:
                        log.warning("an image counts as unknown to the model", exc_info=error)
                    told = True
        return Answers(logits, data.labels(), data.origins, torch.zeros(len(data), 0))

    def _of(self, data: SiteData, features: bool) -> Answers | None:
        client = self.client(int(data.origins[0]) if self.apart and len(data) else -1)
        if client is None or not len(data):
            return None
        classes = self.classes
        head = head_of(client.network) if features else None
        with one_thread(), watched(head) as seen:
            both = answered(client, data, _asking(seen, None if head is None else self.mixing))
        return Answers(both[:, :classes], data.labels(), data.origins, both[:, classes:])


def head_of(network: Network) -> nn.Linear | None:
    """The head of a network as the one linear layer that it is; None if it is anything else."""
    try:
        return linear_head(network)
    except ModelError:
        return None


@contextlib.contextmanager
def watched(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """A list that gets what `layer` is given [b, d] whenever it is asked."""
    seen: list[Tensor] = []
    if layer is None:
        yield seen
        return
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _asking(seen: list[Tensor], mixed: Tensor | None) -> Callable[[nn.Module, Batch], Tensor]:
    """Asks for logits and, mixed, what was seen, side by side [b, classes + d]."""

    def ask(model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(batch.x).float().cpu()
        if mixed is None:
            return logits
        return torch.cat([logits, seen.pop().float().cpu() @ mixed], dim=1)

    return ask
