"""Explanations of a finished run's answers to images: which regions they rest on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError
from fedsight.core.registry import nearest
from fedsight.data.detection.objects import returned
from fedsight.data.images.decode import decode
from fedsight.data.images.fit import Placement
from fedsight.evaluation.explanations.faithfulness import area, curves, ranked
from fedsight.evaluation.explanations.integrals import attributed
from fedsight.evaluation.explanations.measure import FEWEST, FILE, measured
from fedsight.evaluation.explanations.methods import (
    INTEGRATED,
    Network,
    chosen,
    finite,
    heat_of,
    resolved,
)
from fedsight.evaluation.explanations.overlays import panels
from fedsight.evaluation.explanations.scores import BoxScore, PairScore, scored
from fedsight.inference.drawing import opened
from fedsight.inference.inputs import find_files
from fedsight.inference.saved import Saved
from fedsight.inference.simulated import simulated, site_number
from fedsight.models.embedding import Embedding
from fedsight.tasks.presentation import Mark


@dataclass(frozen=True)
class Asked:
    """What is to be explained: by which methods (None: all that the network allows), of which
    layer Grad-CAM is made (None: the last one with maps), which class (None: the answer), and
    which of a detector's boxes, by its score, from 1."""

    methods: Sequence[str] | None = None
    layer: str | None = None
    target: str | None = None
    box: int = 1


@dataclass(frozen=True)
class Explanation:
    """Why a model answers as it does to one image, or why that cannot be said (`error`).

    `heats` has for each method [h, w], of the network's input: positive where the image speaks for
    the `label`. `deletion` and `insertion` say how far to believe each: the mean of `score` while
    the hottest regions are taken away (low is good), and while only they are shown (high is good).
    """

    path: Path
    label: str = ""
    score: float | None = None  # a probability; of two faces the cosine
    heats: Mapping[str, Tensor] = field(default_factory=dict)
    deletion: Mapping[str, float] = field(default_factory=dict)
    insertion: Mapping[str, float] = field(default_factory=dict)
    layer: str | None = None  # that Grad-CAM is made of
    missed: float | None = None  # of the score's change (of 1 if that is more), by the integral
    other: Path | None = None  # the image that a face is compared with
    mark: Mark | None = None  # the box, in pixels of the file
    error: str | None = None
    placement: Placement | None = None  # of the file in the network's input
    picture: Image.Image | None = None

    def panels(self) -> Image.Image:
        """The image, and beside it the heat of each method over it in grey.

        Raises DataError if the image could not be explained."""
        if self.picture is None:
            raise DataError(f"'{self.path}' has no explanation: {self.error}", "see its error")
        marks = () if self.mark is None else (self.mark,)
        return panels(self.picture, self.heats, self.placement, marks)

    def table(self) -> dict[str, Any]:
        """As plain values, for JSON, without the heats."""
        found: dict[str, Any] = {"path": str(self.path)}
        if self.error is not None:
            return {**found, "error": self.error}
        if self.other is not None:
            found["other"] = str(self.other)
        if self.mark is not None:
            found["box"] = [round(side, 2) for side in self.mark.box]
        methods = {
            name: {"deletion": self.deletion[name], "insertion": self.insertion[name]}
            for name in self.heats
        }
        if self.missed is not None:
            methods[INTEGRATED]["missed"] = self.missed
        if self.layer is not None:
            found["layer"] = self.layer
        return {**found, "label": self.label, "score": self.score, "methods": methods}


def network_of(saved: Saved, asked: Asked) -> Network:
    """What methods need of a run's model.

    Raises DataError for a run on texts, and ModelError for a task without explanations.
    """
    seen = saved.preprocess
    if seen.modality != "image":
        raise DataError(
            f"the run learned from {seen.modalities}, and only answers to images are explained",
            "use a run that learned from images",
        )
    return Network(scored(saved.task, saved.module), saved.head, asked.layer)


def methods_of(network: Network, saved: Saved, asked: Asked) -> tuple[tuple[str, ...], Network]:
    """The methods that are asked for (see `chosen`), and the network with the layer of Grad-CAM."""
    seen = saved.preprocess
    blank = torch.zeros(1, seen.channels, seen.height, seen.width)
    x = seen.normalise(blank)
    names = chosen(network, asked.methods, x)
    return names, resolved(network, names, x)


def explain(saved: Saved, paths: Sequence[Path], asked: Asked | None = None) -> list[Explanation]:
    """One explanation for each image, in order; of faces one for each image but the first, which
    the others are compared with.

    Folders are searched as by `predict`. An image that cannot be read, or in which a detector
    finds nothing, has an `error`. Raises DataError for a path that does not exist, an unknown
    method or class, a single face and a first one that cannot be read; ModelError for what the
    network does not allow.
    """
    return list(each_explained(saved, paths, asked))


def each_explained(
    saved: Saved, paths: Sequence[Path], asked: Asked | None = None
) -> Iterator[Explanation]:
    """The same one after the other, so that no more than one image has to be held in memory.

    Raises what `explain` does before the first."""
    asked = asked or Asked()
    with _gradients():
        network = network_of(saved, asked)
        methods, network = methods_of(network, saved, asked)
    files = find_files(paths, "image")
    if not isinstance(network.scored, PairScore):
        _check_asked(network, saved, asked)
        make = partial(_explained, network, saved, asked, methods)
    else:
        if len(files) < 2:
            raise DataError(
                "a face is explained beside another one: why the two match",
                "give two images or more; the first is compared with each of the others",
            )
        _check_face(asked)
        with torch.no_grad():
            about = network.scored.about(_input(saved, files[0]))
        make = partial(_pair, network, saved, methods, (files[0], about))
    return (make(path) for path in explained_of(saved, files))


def explained_of(saved: Saved, files: Sequence[Path]) -> Sequence[Path]:
    """Those that have an explanation: all but the first of faces."""
    return files[1:] if isinstance(saved.module, Embedding) else files


@contextmanager
def _gradients() -> Iterator[None]:
    """Gradients may be followed within, whatever holds outside."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _check_face(asked: Asked) -> None:
    if asked.target is not None or asked.box != 1:
        raise DataError(
            "of two faces their likeness is explained: there is no class and no box",
            "leave out the class and the box",
        )


def _check_asked(network: Network, saved: Saved, asked: Asked) -> None:
    if asked.target is not None and asked.target not in saved.classes:
        raise DataError(
            f"the run has no class '{asked.target}'", nearest(asked.target, saved.classes)
        )
    if asked.box < 1:
        raise DataError(f"there is no box {asked.box}", "boxes are counted from 1")
    if asked.box > 1 and not isinstance(network.scored, BoxScore):
        raise DataError("this run finds no boxes", "leave out --box")


@_gradients()
def _explained(
    network: Network, saved: Saved, asked: Asked, methods: Sequence[str], path: Path
) -> Explanation:
    """One image of a classifier or a detector."""
    try:
        x = _input(saved, path)
        label, about, box = _subject(network, saved, asked, x)
    except DataError as error:
        return Explanation(path, error=str(error))
    found = _measured(network, methods, x, about)
    found = _pictured(saved, replace(found, path=path, label=label))
    if box is None or found.picture is None:
        return found
    mark = Mark(returned(box, found.picture.size, saved.preprocess), f"{label} {found.score:.0%}")
    return replace(found, mark=mark)


@_gradients()
def _pair(
    network: Network, saved: Saved, methods: Sequence[str], other: tuple[Path, Tensor], path: Path
) -> Explanation:
    """A face that is compared with another, whose vector [1, d] is given."""
    face, about = other
    try:
        x = _input(saved, path)
    except DataError as error:
        return Explanation(path, other=face, error=str(error))
    found = _measured(network, methods, x, about)
    return _pictured(saved, replace(found, path=path, other=face, label="likeness"))


def _input(saved: Saved, path: Path) -> Tensor:
    """The network's input [1, c, h, w]."""
    return saved.preprocess.normalise(decode(path, saved.preprocess)[None])


def _subject(
    network: Network, saved: Saved, asked: Asked, x: Tensor
) -> tuple[str, Tensor, tuple[float, float, float, float] | None]:
    """The answer that is explained: its name, what the score is about [1, k], and its box."""
    classes = saved.classes
    number = None if asked.target is None else classes.index(asked.target)
    if not isinstance(network.scored, BoxScore):
        with torch.no_grad():
            row = saved.task.predict(saved.module, x)[0]
        number = int(row.argmax()) if number is None else number
        return classes[number], torch.tensor([[float(number)]]), None
    rows = network.scored.boxes(x)[0]
    least = float(getattr(saved.task, "shown", 0.0))
    rows = rows[(rows[:, 1] > 0) & (rows[:, 1] >= least)]
    rows = rows if number is None else rows[rows[:, 0] == number]
    if len(rows) < asked.box:
        raise DataError(f"the detector finds {len(rows)} boxes of what is asked in the image")
    chosen_row = rows[asked.box - 1]
    left, top, right, bottom = chosen_row[2:].tolist()
    about = torch.cat([chosen_row[:1], chosen_row[2:]])[None]
    return classes[int(chosen_row[0])], about, (left, top, right, bottom)


def _measured(network: Network, methods: Sequence[str], x: Tensor, about: Tensor) -> Explanation:
    """The heats of one image [1, c, h, w], and how far to believe them."""
    with torch.no_grad():
        score = float(network.scored.shown(x, about))
    heats, deletion, insertion, missed = {}, {}, {}, None
    for name in methods:
        if name == INTEGRATED:
            found, off = attributed(network.scored, x, about, network.exact)
            heat, missed = finite(found.sum(1)), float(off)
        else:
            heat = heat_of(network, name, x, about).detach()
        deleted, inserted = curves(network.scored, x, about, ranked(heat))
        heats[name] = heat[0]
        deletion[name], insertion[name] = float(area(deleted)), float(area(inserted))
    return Explanation(Path(), "", score, heats, deletion, insertion, network.layer, missed)


def _pictured(saved: Saved, found: Explanation) -> Explanation:
    """With the upright image of the file, and where it is in the network's input."""
    picture = opened(found.path, saved.preprocess)
    return replace(found, picture=picture, placement=Placement.of(picture.size, saved.preprocess))


def measure(
    saved: Saved, run: Path, asked: Asked, images: int, site: str | None = None
) -> dict[str, Any]:
    """Measure on a run's test images how faithful each method is to its model, and write it to
    `explanations.json`, which the report shows.

    With `site`, on the images that this site tests. Raises DataError as `measured` does, and for
    too few images.
    """
    if images < FEWEST:
        raise DataError(f"{images} images are too few to measure on", f"ask for {FEWEST} or more")
    with _gradients():
        network = network_of(saved, asked)
        methods, network = methods_of(network, saved, asked)
        federation = simulated(run)
        number = None if site is None else site_number(federation, site)
        found = measured(federation, network, methods, images, number)
    RunStore(run).write_json(FILE, found)
    return found
