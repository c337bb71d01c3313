"""How a model does on images that it was trained on, and on test images that are corrupted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.client.bound_model import CHUNK
from fedsight.client.step import Client
from fedsight.core.draws import draws
from fedsight.core.threads import one_thread
from fedsight.data.base import Indices
from fedsight.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from fedsight.evaluation.attempts import GENERALISATION, Attempts
from fedsight.evaluation.evidence import Weights, answered, some, weights
from fedsight.evaluation.figures import Evaluator, Figures
from fedsight.evaluation.trust.measure import why_not
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData

TRAINED = 2000  # training images of all sites together, drawn evenly
CORRUPTED = 500  # test images that are corrupted; of many views fewer each, but at least FEWEST
FEWEST = 100

UNASKED = "trust.robustness is false"
TEXTS = "only images are corrupted"
SHARES = "it is made for tasks whose main figure is the share of right answers"
ITSELF = "the task measures degraded images itself: its figures whose names begin with 'degraded'"

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Exam:
    """Shares of right answers of one model: of `images` that it was trained on, of all test images,
    of those of them that are corrupted (`clean`), and of these by corruption, at each severity."""

    trained: float | None
    images: int
    tested: float | None = None
    clean: float | None = None
    corrupted: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """The mean over all corruptions and severities; None if nothing was corrupted."""
        return float(np.mean(list(self.corrupted.values()))) if self.corrupted else None

    def plain(self) -> dict[str, Any]:
        """The exam as values for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Exam:
        """The exam that `plain` describes; AttributeError, KeyError, TypeError, ValueError or
        OverflowError if it describes none."""
        kinds = {name: tuple(map(_share, each)) for name, each in plain["corrupted"].items()}
        if (kinds and {*kinds} != {*CORRUPTIONS}) or any(
            len(one) != SEVERITIES for one in kinds.values()
        ):
            raise ValueError("it is not of the corruptions that there are")
        images = plain["images"]
        if type(images) is not int or images < 0:
            raise ValueError(f"{images!r} is not a number of images")
        trained, tested, clean = (
            None if plain[key] is None else _share(plain[key])
            for key in ("trained", "tested", "clean")
        )
        return cls(trained, images, tested, clean, kinds)


def _share(value: Any) -> float:
    found = float(value)
    if not 0 <= found <= 1:
        raise ValueError(f"{found} is not a share")
    return found


def share(figures: Figures) -> float | None:
    """The share of all answers to test images that are right, whatever sites and mixes they are
    of; None if that is not known."""
    if figures.confusion is None or not figures.confusion.sum():
        return None
    return float(np.trace(figures.confusion) / figures.confusion.sum())


class Examiner:
    """Examines the model that a client has loaded, for one site after another or for all.

    What is asked of the test images of a view serves all sites that are tested on it. All models of
    a comparison get the same images: `whole` is the federation that they are drawn from.
    """

    def __init__(self, whole: Federation, evaluator: Evaluator, client: Client) -> None:
        self._evaluator, self._client = evaluator, client
        self._learnt = learnt(whole)
        self._corrupt = unasked(whole) is None
        self._known: dict[int, Right] = {}

    def of_site(self, site: int) -> Exam:
        """On training images of `site`, and on test images in its mix of labels."""
        mine = (self._learnt.origins == site).nonzero().squeeze(1)
        trained = self._trained(some(self._learnt, mine))
        number = self._evaluator.view(site)
        if number is None or not self._corrupt:
            return trained
        labels = self._labels(number)
        return self._with(
            trained, self._right(number), weights(labels, self._evaluator.mix_of(site))
        )

    def of_all(self) -> Exam:
        """On training images and test images of all sites."""
        trained = self._trained(self._learnt)
        views = range(len(self._evaluator.federation.views))
        if not self._corrupt or not views:
            return trained
        right = np.concatenate([self._right(number) for number in views], axis=1)
        sizes = [len(self._evaluator.federation.views[number].indices) for number in views]
        parts = [np.full(n := len(self._chosen(at)), sizes[at] / max(1, n)) for at in views]
        weight = np.concatenate(parts)
        return self._with(trained, right, weight / max(1.0, weight.sum()))

    def _trained(self, data: SiteData) -> Exam:
        """As the network sees them when it is tested: without augmentation."""
        if not len(data):
            return Exam(None, 0)
        with one_thread():
            right = answered(self._client, data, self._evaluator.federation.program.task.right)
        return Exam(float(right.double().mean()), len(data))

    def _with(self, trained: Exam, right: Right, weight: Weights) -> Exam:
        if not weight.any():
            return trained
        clean, *each = (right.astype(np.float64) @ weight).clip(0, 1).tolist()
        kinds = {
            kind: tuple(each[at * SEVERITIES : (at + 1) * SEVERITIES])
            for at, kind in enumerate(CORRUPTIONS)
        }
        return replace(trained, clean=clean, corrupted=kinds)

    def _chosen(self, number: int) -> Indices:
        """The positions in a view of the images that are corrupted."""
        views = self._evaluator.federation.views
        most = max(FEWEST, CORRUPTED // len(views))
        return _drawn(views[number].indices, most, "corrupted")

    def _labels(self, number: int) -> npt.NDArray[np.int64]:
        federation = self._evaluator.federation
        return federation.dataset.test.labels[
            federation.views[number].indices[self._chosen(number)]
        ]

    def _right(self, number: int) -> Right:
        """Which answers are right [1 + corruptions * severities, n], first of the clean images."""
        if number not in self._known:
            federation = self._evaluator.federation
            data = federation.tested(federation.views[number])
            data = some(data, torch.from_numpy(self._chosen(number)))
            with one_thread():
                found = [self._answers(one) for one in _each(data)]
            self._known[number] = np.stack(found)
        return self._known[number]

    def _answers(self, data: SiteData) -> Right:
        """Of pixels, always: what frozen layers made of an image is that of the clean one."""
        right, model = self._evaluator.federation.program.task.right, self._client.model
        model.eval()
        with torch.inference_mode():
            chunks = torch.arange(len(data)).split(CHUNK)
            found = [right(model, self._client.batch(data, chunk)).cpu() for chunk in chunks]
        return np.asarray(torch.cat(found).numpy(), dtype=bool)


def unexamined(federation: Federation, local: bool) -> str | None:
    """Why models are not examined; None if they are. `local`: the images are on this machine."""
    reason = why_not(federation, local)
    return reason if reason is not None or federation.program.task.share else SHARES


def unasked(federation: Federation) -> str | None:
    """Why nothing is corrupted; None if it is."""
    if not federation.program.trust.robustness:
        return UNASKED
    return None if federation.dataset.preprocess.modality == "image" else TEXTS


def examined(
    federation: Federation, evaluator: Evaluator, client: Client, site: int | None
) -> Exam | None:
    """The exam, by images of `federation`, of the model that a client on this machine has loaded:
    that of `site`, or of all sites. None if models are not examined, or it fails, which is no
    reason to lose what was trained."""
    if unexamined(federation, local=True) is not None:
        return None

    def exam() -> Exam:
        examiner = Examiner(federation, evaluator, client)
        return examiner.of_all() if site is None else examiner.of_site(site)

    return Attempts().of(GENERALISATION, exam, None)


def learnt(federation: Federation) -> SiteData:
    """Training images of all sites, at most TRAINED, drawn evenly."""
    data = replace(federation, pooled=True).client(0)
    return some(data, torch.from_numpy(_drawn(data.indices.numpy(), TRAINED, "trained")))


def _drawn(images: Indices, most: int, purpose: str) -> Indices:
    """The positions of at most so many of the `images` of a part [n], those with the first numbers
    in an order that is drawn once and for all: runs with other seeds get the same."""
    if not len(images):
        return np.zeros(0, np.int64)
    ranks = _ranks(int(images.max()) + 1, purpose)
    return np.sort(np.argsort(ranks[images], kind="stable")[:most])


@lru_cache(maxsize=4)  # asked for every site's model
def _ranks(images: int, purpose: str) -> Indices:
    order = draws(0, "generalisation", purpose).permutation(images)
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def _each(data: SiteData) -> Iterator[SiteData]:
    """The images as they are, and by each corruption at each severity."""
    yield data
    for corruption in CORRUPTIONS.values():
        for severity in range(1, SEVERITIES + 1):
            yield corrupted(data, corruption, severity)


def corrupted(data: SiteData, corruption: Corruption, severity: int) -> SiteData:
    """The images of a site as its device shows them, and corrupted after that."""

    def view(pixels: Tensor, origin: int, indices: Tensor) -> Tensor:
        return corruption.apply(data.view(pixels, origin, indices), severity, indices)

    return replace(data, view=view)
