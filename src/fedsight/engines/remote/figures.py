"""Reads the figures that a site sends: exact sums, or sums with noise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fedsight.core.errors import SiteError
from fedsight.core.types import Metrics
from fedsight.engines.remote import messages, replies
from fedsight.privacy.event import MOST_NOISE
from fedsight.privacy.noised_sums import Bounds, NoisedSums, deviation
from fedsight.program.federation import Federation

FARTHEST = 40.0  # standard deviations: noise is never farther off


class FigureReader:
    """Knows the names and shapes of a task's sums."""

    def __init__(self, federation: Federation, noised: Collection[str] = ()) -> None:
        """`noised`: the sites that have declared that they add noise to their figures."""
        task, size = federation.program.task, federation.dataset.preprocess
        blank = replies.blank(federation)
        self.shapes = {name: one.total.shape for name, one in blank.items()}
        self._task, self._pixels = task, size.height * size.width
        self._bounds = task.bounds(len(federation.dataset.classes), self._pixels)
        condensed = task.condensed(blank) if self._bounds is not None else {}
        self._noised = {name: one.total.shape for name, one in condensed.items()}
        self._shared = task.whole
        self._sites = frozenset(noised)

    def checked(self, answer: Mapping[str, Any], site: str, images: int) -> Metrics:
        """The sums over a site's `images` test images, checked: the task's names and shapes, the
        number of images, and whether there is noise in them as the site has declared. With noise of
        its own choice a site could take away what others have counted, where the report calls its
        figures exact. Raises SiteError, naming the site."""
        found = self.read(answer, site)
        if (noised := isinstance(found, NoisedSums)) != (site in self._sites):
            cause = f"site '{site}' has declared figures with noise, and sent exact ones"
            if noised:
                cause = f"site '{site}' has declared exact figures, and sent some with noise"
            cure = "restart it, so that it declares what its contract.figures now says"
            raise SiteError(cause, cure)
        if any(one.count != images for one in found.values()):
            cause = f"site '{site}' sent figures of another task, or of other images"
            raise SiteError(cause, "run the same FedSight version there, on the same images")
        return found

    def read(self, answer: Mapping[str, Any], site: str) -> Metrics:
        """The sums in an answer, `NoisedSums` if it states noise.

        Raises SiteError, naming the site, if they are not those of the task.
        """
        sender, noise = f"site '{site}'", answer.get("noise")
        if noise is None:
            sums = messages.read_metrics(answer.get("metrics"), self.shapes, sender)
            if not self._task.is_possible(sums, self._pixels):
                raise _impossible(sender)
            return sums
        return read_noised(answer, self._bounds, self._noised, site, self._shared)


def read_noised(
    answer: Mapping[str, Any],
    bounds: Bounds | None,
    shapes: messages.Shapes,
    site: str,
    shared: bool = False,
) -> NoisedSums:
    """The sums with noise in an answer, of these `shapes`, where an image's share has these bounds
    (None: it has none). Raises SiteError, naming the site, if they are not such."""
    noise, noises = answer.get("noise"), None
    if bounds is not None and type(noise) is float and 0 < noise <= MOST_NOISE:  # not for NaN
        noises = deviation(bounds, noise, shared)
    # Squares of the deviations are computed, too.
    if bounds is None or noises is None or max(noises.values(), default=0.0) > messages.MAX_SUM:
        raise SiteError(
            f"site '{site}' says that its figures have noise, which this task's cannot have",
            "run the same FedSight version at the site and at the coordinator",
        )
    sender = f"site '{site}'"
    found = messages.read_metrics(answer.get("metrics"), shapes, sender)
    for name, one in found.items():
        far, most = FARTHEST * noises[name], bounds[name] * one.count
        if not ((one.total >= -far) & (one.total <= most + far)).all():
            raise _impossible(sender)
    return NoisedSums(found, noises)


def _impossible(sender: str) -> SiteError:
    return SiteError(
        f"{sender} sent figures that no model can have on its test images",
        "run the same FedSight version there; if that is so, it makes them up: revoke it",
    )
