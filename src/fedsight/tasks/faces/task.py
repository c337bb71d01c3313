"""Face recognition: embeddings that are close for the same person and far apart otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from fedsight.core.errors import ModelError, Problem
from fedsight.core.layout import Kind
from fedsight.core.types import Batch, Metrics, Sum
from fedsight.data.base import Dataset
from fedsight.models.base import Network
from fedsight.models.embedding import Embedding
from fedsight.models.gabor import Whiten
from fedsight.tasks import repair
from fedsight.tasks.base import Task, tasks
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.pairs import Pairs
from fedsight.tasks.faces import company, verification
from fedsight.tasks.faces.company import NAMED
from fedsight.tasks.faces.margins import (
    Margin,
    among_images,
    margin_loss,
    positive_loss,
    spread_loss,
)
from fedsight.tasks.plausible import are_counts
from fedsight.tasks.presentation import Answer, Curve, Sample, Table

SHOWN = 16  # pairs of each kind in a report
MOST_POINTS = 200  # of a curve
OFTEN = 50  # times: no Poisson(1) draw is so large
SHOWN_KINDS = {  # how tables call degraded images; `data.degraded` has the numbers
    "": "as they are",
    verification.ALL_KINDS: "degraded in any of these ways, at one threshold",
    "smaller": "reduced to 16 pixels at the shorter side, enlarged",
    "darker": "dark: a quarter of the light",
    "turned": "turned by 15 degrees",
    "covered": "a quarter covered",
}

Far = Annotated[float, Field(gt=0, lt=1)]


@tasks.add("faces", paper="Deng et al. 2019; Wang et al. 2018; Yu et al. 2020")
class FaceRecognition(Task):
    """Verification of people unseen in training; one vector per person stays at the site.

    A site's softmax is over its own people. A site with only one person has no one to compare with:
    its images are pulled towards the person's vector instead, which is kept near its start.
    """

    headline: ClassVar[str] = "auc"
    headline_title: ClassVar[str] = "Verification AUC"
    figures: ClassVar[tuple[str, ...]] = ("auc", "eer")
    worse: ClassVar[frozenset[str]] = frozenset({"eer"})
    whole: ClassVar[bool] = True
    probes: ClassVar[bool] = True
    mixes: ClassVar[bool] = False
    asks_head: ClassVar[bool] = False
    covering: ClassVar[Covering | None] = Pairs()

    softmax: Margin = "cosface"  # arcface or cosface
    # what an image is compared with in training: vectors of the site's people, which learn and stay
    # at the site, or the mean of the person's other images in the batch
    against: Literal["vectors", "images"] = "vectors"
    margin: float = Field(0.2, ge=0, lt=1.5)  # of the angle (arcface) or of its cosine (cosface)
    scale: float = Field(16.0, gt=0)  # of cosines before the softmax
    # weight of the term that holds people's vectors near their starts
    spread: float = Field(1.0, ge=0)
    reach: float = Field(0.5, ge=0, le=2)  # distance from its start within which a vector is free
    # false accept rates at which true accept rates are reported
    fars: Annotated[tuple[Far, ...], Field(strict=False, min_length=1)] = (0.01, 0.001)

    def check_settings(self) -> list[Problem]:
        """Nothing is asked of people's vectors where there are none."""
        own = type(self).model_fields
        return [
            Problem(
                f"task.{name}",
                "it holds people's vectors near their starts, and with task.against = 'images' "
                "there are none",
                "leave it out, or set task.against = 'vectors'",
            )
            for name in ("spread", "reach")
            if self.compares and getattr(self, name) != own[name].default
        ]

    @property
    def compares(self) -> bool:
        """With images of the same batch, if it is so set."""
        return self.against == "images"

    def check(self, dataset: Dataset) -> list[Problem]:
        """Test images must be of people who are not trained on."""
        problems = super().check(dataset)
        seen = np.intersect1d(dataset.train.labels, dataset.test.labels)
        if len(seen):
            cause = f"{len(seen)} people of the test part are also in the training part"
            cure = "use a source of people (orl-faces, people), which holds out people, not images"
            problems.append(Problem("data.name", cause, cure))
        return problems

    def check_trained(self, trained: Mapping[str, npt.NDArray[np.int64]]) -> list[Problem]:
        """Where images are compared with one another, a site must have two people."""
        return company.problems(trained) if self.compares else []

    def notes(self, trained: Mapping[str, npt.NDArray[np.int64]]) -> tuple[str, ...]:
        """Which sites have one person only."""
        return company.notes(trained) if self.compares else ()

    def check_tested(self, tested: Mapping[str, npt.NDArray[np.int64]]) -> list[Problem]:
        """At least two people must be tested at one site: vectors are not sent between sites."""
        if any(len(np.unique(labels)) > 1 for labels in tested.values()):
            return []
        cause = "fewer than two people are held out for testing"
        if set(tested) != {""}:
            sites = sorted(name for name in tested if name)
            more = f" and {len(sites) - NAMED} more" if len(sites) > NAMED else ""
            cause = "no site has two people who are held out for testing"
            cause += f" (one at {', '.join(sites[:NAMED])}{more})" if sites else ""
            cause += ", and faces are compared only within a site, so nothing could be measured"
        cure = (
            "add people (two of four at a site are held out), set data.unseen = 0.5 (which holds "
            "out two of three), or mark the people to test on"
        )
        return [Problem("data", cause, cure)]

    def check_network(self, network: Network) -> list[Problem]:
        """The network must return vectors."""
        if isinstance(network.module, Embedding):
            return []
        cause = (
            "the task 'faces' needs a network that returns vectors, but this one returns classes"
        )
        return [Problem("model.name", cause, "use 'face_net', or 'embedding' around another")]

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """People's vectors stay at the site."""
        return Kind.PERSONAL if name in network.head else kind

    def begin(self, model: nn.Module, labels: Tensor, draws: np.random.Generator) -> None:
        """Tell the head which people the site has, and draw where their vectors start; features are
        whitened by the statistics of all sites, as far as these have come."""
        _embedding(model).head.start_at(labels.unique(), draws)
        for part in model.modules():
            if isinstance(part, Whiten):
                part.hold()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Margin softmax over the site's people, or `positive_loss` for one, plus spread."""
        network = _embedding(model)
        if self.compares:
            return self._among_images(network, batch)
        head = network.head
        vectors = head.vectors()
        cosines = network.embed(batch.x) @ vectors.T
        if len(head.own) > 1:
            loss = margin_loss(cosines, batch.y, head.own, self.softmax, self.margin, self.scale)
        else:
            loss = positive_loss(cosines, batch.y)
        if self.spread:
            held = spread_loss(vectors[head.own], head.start[head.own], self.reach)
            loss = loss + self.spread * held
        return loss

    def _among_images(self, network: Embedding, batch: Batch) -> Tensor:
        """Margin softmax over the people in the batch, or `positive_loss` for one; 0 where nobody
        has two images in it."""
        vectors = network.embed(batch.x)
        cosines, place = among_images(vectors, batch.y)
        if not len(cosines):
            return vectors.sum() * 0
        if cosines.shape[1] == 1:
            return positive_loss(cosines, place)
        people = torch.arange(cosines.shape[1], device=place.device)
        return margin_loss(cosines, place, people, self.softmax, self.margin, self.scale)

    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """Histograms and counts of `verification`; never a single score or vector.

        Degraded images are probes: each is compared with the others as they are.
        """
        embed, people, pixels = _embedding(model).embed, batch.y.cpu(), batch.x.cpu()
        vectors = embed(batch.x).cpu()
        found = {
            **verification.verify(vectors, people, pixels),
            **verification.identify(vectors, people),
        }
        for kind, x in batch.degraded.items():
            probes = verification.verify(vectors, people, pixels, embed(x).cpu())
            found |= verification.probed(kind, probes)
        return found

    def bounds(self, classes: int, pixels: int) -> Mapping[str, float]:
        """One pair of each kind for each unit of people."""
        return {"genuine": 1.0, "impostor": 1.0}

    def condensed(self, sums: Mapping[str, Sum]) -> dict[str, Sum]:
        """`genuine` and `impostor` pairs by score; nothing else can be noised."""
        pairs = repair.coarse(sums["pairs"].total.sum(axis=0), verification.NOISED)
        return {
            name: Sum(counts, sums["pairs"].count)
            for name, counts in zip(("genuine", "impostor"), pairs, strict=True)
        }

    def is_possible(self, sums: Mapping[str, Sum], pixels: int) -> bool:
        """Every pair has one score, and no more people are looked for than there are images."""
        images, rank = sums["pairs"].count, sums["rank"].total
        pairs = images * (images - 1) / 2
        asked = {"": pairs, **{f"{kind}_": 2 * pairs for kind in verification.kinds_of(sums)}}
        return (
            are_counts(sums["open"].total)
            and all(_are_pairs(sums, kind, due) for kind, due in asked.items())
            and are_counts(rank, [rank[1], images])
            and bool(sums["open"].total.sum() <= rank[1])
        )

    def repaired(self, sums: Mapping[str, Sum], deviation: Mapping[str, float]) -> dict[str, Sum]:
        """No negative numbers; without a kind of pairs that noise hides nothing is measured."""
        found = verification.nothing(sums["genuine"].count)
        for kind, name in ((verification.GENUINE, "genuine"), (verification.IMPOSTOR, "impostor")):
            noised = sums[name].total
            total, hidden = float(noised.sum()), 2 * deviation[name] * math.sqrt(noised.size)
            if total >= hidden:  # two standard errors
                counts = repair.projected(noised, total)
                found["pairs"].total[2, kind] = repair.fine(
                    counts, verification.NOISED, verification.BINS
                )
        return found

    def units(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The images of two people whose numbers follow each other are one unit.

        A pair shows two images, so an image cannot be measured alone. Compared with all others it
        would move as many pairs as there are; so it is in the pairs of one unit only.
        """
        return labels // 2

    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """`auc`, `eer`, `tar_at_F` and others; `mix` is ignored."""
        return verification.figures(sums, self.fars)

    def intervals(self, sums: Mapping[str, Sum]) -> dict[str, tuple[float, float]]:
        """Of `auc` and `tar_at_F`, by people drawn again and again (`verification.interval`)."""
        found = self.summary(sums)
        names = [name.removesuffix("_low") for name in found if name.endswith("_low")]
        bounds = {name: (found[f"{name}_low"], found[f"{name}_high"]) for name in names}
        return {name: pair for name, pair in bounds.items() if not math.isnan(pair[0])}

    def replicates(self, sums: Mapping[str, Sum]) -> list[float]:
        """The area for each draw of people, which follows from their images alone."""
        return [verification.auc(one.sum(axis=0)) for one in sums["resampled"].total]

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Raises ModelError: identities are in a site's gallery, not in the model."""
        raise ModelError(
            "this model compares faces and does not know names",
            "enrol people with `fedsight faces enrol`, then use `fedsight faces identify`",
        )

    def answers(self, model: nn.Module, x: Tensor, classes: tuple[str, ...]) -> list[Answer]:
        """Raises ModelError, as `predict` does."""
        self.predict(model, x)
        return []

    def samples(self, model: nn.Module, batch: Batch, classes: tuple[str, ...]) -> list[Sample]:
        """Pairs side by side, the worst errors first, at the threshold of equal error."""
        vectors, people = _embedding(model).embed(batch.x).cpu(), batch.y.cpu()
        scores = vectors @ vectors.T
        first, second = torch.triu_indices(len(scores), len(scores), 1)
        flat = scores[first, second]
        same = people[first] == people[second]
        threshold = _equal_error_threshold(flat, same)
        accepted = flat >= threshold
        order = torch.argsort((flat - threshold).abs(), descending=True, stable=True)
        words = {True: "same person", False: "two people"}
        chosen: list[int] = []
        for truth in (True, False):
            for right in (False, True):
                kind = order[((same == truth) & ((accepted == same) == right))[order]]
                # The most confident errors; of the right answers, those closest to the threshold.
                chosen += (kind if not right else kind.flip(0))[:SHOWN].tolist()
        chosen.sort(key=lambda at: -abs(float(flat[at]) - threshold))
        return [
            Sample(
                positions=(int(first[at]), int(second[at])),
                truth=words[bool(same[at])],
                predicted=words[bool(accepted[at])],
                probability=(float(flat[at]) + 1) / 2
                if accepted[at]
                else (1 - float(flat[at])) / 2,
                right=bool(accepted[at] == same[at]),
            )
            for at in chosen
        ]

    def curves(self, sums: Mapping[str, Sum], classes: tuple[str, ...]) -> list[Curve]:
        """The ROC curve over all pairs."""
        counts = sums["pairs"].total.sum(axis=0)
        if not counts.sum(axis=1).all():
            return []
        false, true = verification.roc(counts)
        points = sorted(set(zip(false.tolist(), true.tolist(), strict=True)))
        step = max(1, len(points) // MOST_POINTS)
        kept = [*points[::step], points[-1]]
        lines = {"this model": kept, "by chance": [(0.0, 0.0), (1.0, 1.0)]}
        title = "Verification of people unseen in training"
        return [Curve(title, "false accept rate", "true accept rate", lines)]

    def tables(self, sums: Mapping[str, Sum], classes: tuple[str, ...]) -> list[Table]:
        """Verification and identification at each false accept rate."""
        found = verification.figures(sums, self.fars)
        columns = (
            *("wanted false accept rate", "reached on other people", "true accept rate"),
            *("95 % from", "to", "threshold", "enrolled people found among strangers"),
        )
        keys = ("far", "tar", "tar_low", "tar_high", "threshold", "identified")
        rows: list[tuple[str | float | None, ...]] = []
        for far in self.fars:
            names = [_key(key, far) for key in keys]
            values = [None if np.isnan(found[name]) else found[name] for name in names]
            rows.append((f"{far:g}", *values))
        told = [Table("At thresholds chosen on other people", columns, rows)]
        if kinds := verification.kinds_of(sums):
            told.append(self._probes_table(found, kinds))
        return told

    def _probes_table(self, found: Mapping[str, float], kinds: tuple[str, ...]) -> Table:
        """The true accept rates of degraded images at the first false accept rate."""
        far = self.fars[0]
        columns = ("Compared with images that are", "AUC", "true accept rate", "95 % from", "to")
        names = ("auc", _key("tar", far), _key("tar_low", far), _key("tar_high", far))
        rows: list[tuple[str | float | None, ...]] = []
        for kind in ("", verification.ALL_KINDS, *kinds):
            values = [found[f"{kind}_{name}".removeprefix("_")] for name in names]
            rows.append((SHOWN_KINDS[kind], *(None if np.isnan(one) else one for one in values)))
        title = f"Degraded images at a false accept rate of {far:g}"
        return Table(title, columns, rows)


def _are_pairs(sums: Mapping[str, Sum], kind: str, due: float) -> bool:
    """Whether so many pairs can have been counted, of images as they are ("") or of a `kind`."""
    pairs, drawn = sums[f"{kind}pairs"].total, sums[f"{kind}resampled"].total
    return (
        are_counts(pairs)
        and are_counts(drawn)
        and bool(pairs.sum() == due)
        and bool((drawn.sum(axis=(1, 2, 3)) <= due * OFTEN**2).all())
    )


def _key(key: str, far: float) -> str:
    name, _, bound = key.partition("_")
    return f"{name}_at_{far:g}" + (f"_{bound}" if bound else "")


def _embedding(model: nn.Module) -> Embedding:
    assert isinstance(model, Embedding)  # checked by FaceRecognition.check_network
    return model


def _equal_error_threshold(scores: Tensor, same: Tensor) -> float:
    counts = np.stack([verification.count(scores[kind]).numpy() for kind in (same, ~same)])
    false, true = verification.roc(counts)
    return float(verification.edges(counts)[int(np.argmin(np.abs(false - (1 - true))))])
