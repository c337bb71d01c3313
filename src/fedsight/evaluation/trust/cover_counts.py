"""What a model loses of held-out and of test images: in a simulation, whose images are here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedsight.client.members import Members
from fedsight.client.step import Client
from fedsight.evaluation.evidence import some
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.cover_sums import held_by_part, tallied
from fedsight.evaluation.trust.images import trust_images
from fedsight.evaluation.trust.units import grouped
from fedsight.program.site_data import SiteData
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.levels import Tally, summed

NOBODY = -1  # the number of the site of images that belong to none


@dataclass(frozen=True)
class Tallies:
    """What was counted of one part of answers: of all units, and of those of each site by its
    number, as far as that is known."""

    whole: Tally
    sites: Mapping[int, Tally]

    @property
    def units(self) -> int:
        """How many units there are."""
        return int(self.whole.units[0])


@dataclass(frozen=True)
class Counts:
    """What was counted, by part: of the images that are `held` out (`by` says which these are), and
    of those that show what came of it. `grouped`: units are groups of images; `apart`: each site
    has a model of its own."""

    held: Mapping[str, Tallies]
    tested: Mapping[str, Tallies]
    by: str
    grouped: bool
    apart: bool = False


def counted(final: Final, covering: Covering) -> Counts:
    """What the model that a run ended with loses of the images of its sites."""
    federation = final.federation
    apart, task = federation.program.differs(federation.network), federation.program.task
    images = trust_images(federation, apart)
    clients = _Clients(final, covering, apart)
    halves = held_by_part(covering, images.fitted, images.cover)
    parts = ([*images.fitted, *images.cover], images.tested)
    return Counts(
        {part: clients.tallies(part, half) for part, half in halves.items()},
        {part: clients.tallies(part, images.tested, True) for part in covering.parts},
        images.by,
        not task.whole and any(map(grouped, parts)),
        apart,
    )


class _Clients:
    """Count what the models of a run lose."""

    def __init__(self, final: Final, covering: Covering, apart: bool) -> None:
        self._final, self._covering, self._apart = final, covering, apart
        self._clients = Members(final.federation, lambda member: Client(member, final.speed))

    def tallies(self, part: str, data: Sequence[SiteData], shown: bool = False) -> Tallies:
        """What is lost of the images, which may be several sites'; `shown`: see `tallied`."""
        sites: dict[int, Tally] = {}
        client, loaded = None, None
        for site, images in _by_origin(data):
            model = site if self._apart else NOBODY
            if model != loaded:
                client, loaded = self._client(model), model
            if client is not None:
                sites[site] = tallied(client, images, self._covering, part, shown)
        classes = len(self._final.federation.dataset.classes)
        groups, steps = self._covering.groups(part, classes), self._covering.steps(part)
        return Tallies(summed(sites.values(), groups, steps), sites)

    def _client(self, number: int) -> Client | None:
        """A client with the model of a site, or with the common one (NOBODY); None if the site
        never trained."""
        if number == NOBODY:
            return self._clients.loaded(self._final.vector, None, {})
        kept = self._final.memory.latest(self._final.federation.partition.name(number))
        return self._clients.loaded(self._final.vector, number, kept)


def _by_origin(data: Sequence[SiteData]) -> Iterator[tuple[int, Sequence[SiteData]]]:
    """The images of each site."""
    sites = dict.fromkeys(site for images in data for site in images.origins.unique().tolist())
    for site in sites:
        yield site, [some(images, images.origins == site) for images in data]
