"""A finished run in Python, or a series of them: figures, model, answers and report."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError, StoreError
from fedsight.inference import explain, predict, saved
from fedsight.inference.explain import Explanation
from fedsight.inference.predict import Prediction
from fedsight.inference.saved import Saved
from fedsight.inference.trusted import Cover

SERIES = "series.json"  # in the folder of a series: its seeds, and when it is finished its figures


class Run:
    """A finished run and the folder that holds it."""

    def __init__(self, folder: Path, site: str | None = None) -> None:
        """Raises StoreError if `folder` is not a run that has finished."""
        self._folder = Path(folder)
        self._store = RunStore(self._folder)
        self._site = site
        self._kept: object = None  # objects from Python that the model needs, while this is in use
        if not (self._folder / "run.toml").is_file():
            raise StoreError(f"{folder} is not a run folder", "give the folder of a run")
        if not (self._folder / "summary.json").is_file():
            raise StoreError(
                f"the run in {folder} is not finished", f'finish it: fedsight.resume("{folder}")'
            )

    def __repr__(self) -> str:
        score, title = self.summary.get("score"), self.summary.get("headline")
        figure = f"{title} {score:.4f}, " if isinstance(score, float) else ""
        return f"<Run {self.summary.get('name')!r}: {figure}{self.folder}>"

    @property
    def folder(self) -> Path:
        """The folder that holds everything the run has written."""
        return self._folder

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """The final figures, as `summary.json` holds them."""
        return self._store.read_json("summary.json")

    @cached_property
    def history(self) -> list[Mapping[str, Any]]:
        """The figures of each round, as `history.jsonl` holds them."""
        return list(self._store.history())

    @cached_property
    def comparison(self) -> Mapping[str, Any] | None:
        """Each site alone and all pooled, as `comparison.json` holds them; None without one."""
        if not (self._folder / "comparison.json").is_file():
            return None
        return self._store.read_json("comparison.json")

    @cached_property
    def model(self) -> nn.Module:
        """The trained network in evaluation mode: normalised images [b, c, h, w] to answers.

        It takes images as training saw them; `predict` prepares them and names the classes. Raises
        StoreError where each site has a model of its own: see `for_site`.
        """
        # A copy: whoever trains it on, or only calls train(), does not change what `predict` says.
        found = self._saved.module
        with torch.inference_mode(False):  # or it could not be trained later
            return copy.deepcopy(found)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the network's answers."""
        return self._saved.classes

    def for_site(self, site: str) -> Run:
        """The same run with the model that `site` got: its own, or its own part (fedbn, fedrep,
        ditto), or what it chose after `compare`."""
        other = Run(self._folder, site)
        other._kept = self._kept
        return other

    def predict(
        self,
        inputs: str | PathLike[str] | Sequence[str | PathLike[str]] | Tensor,
        coverage: float | None = None,
        abstain: bool = False,
    ) -> list[Prediction]:
        """One prediction for each image or text, in order.

        `inputs` are paths of files and folders, or pixels [n, c, h, w] or [c, h, w]: uint8, or from
        0 to 1, not normalised. Raises DataError for a path that does not exist, and for pixels of
        another shape or range; a file that cannot be read becomes a prediction with `error`.

        With a `coverage` between 0 and 1 a prediction has a set of `classes`, which holds the true
        one with at least this probability; with `abstain` it has no label unless the set is of one
        class and the image is like those of the training. Raises DataError where the run has no
        such sets.
        """
        if abstain and coverage is None:
            raise DataError("abstain needs a coverage", "give for example coverage=0.9")
        cover = None if coverage is None else Cover(coverage, abstain)
        if isinstance(inputs, Tensor):
            return predict.predict_pixels(self._saved, inputs, cover=cover)
        return predict.predict(self._saved, _paths(inputs), cover=cover)

    def explain(
        self,
        inputs: str | PathLike[str] | Sequence[str | PathLike[str]],
        methods: str | Sequence[str] | None = None,
        layer: str | None = None,
        target: str | None = None,
        box: int = 1,
    ) -> list[Explanation]:
        """One explanation for each image, in order: which regions its answer rests on.

        `inputs` are paths of image files and folders; of a run on faces, the first is compared with
        each of the others. `methods` are a name such as "occlusion", or several (None: all that the
        network allows), `layer` is the one that Grad-CAM is made of, `target` the class that is
        explained instead of the answer, `box` which of a detector's boxes, by its score. Raises
        DataError and ModelError as `fedsight explain` does; an image that cannot be read has an
        `error`.
        """
        asked = explain.Asked(_named(methods), layer, target, box)
        return explain.explain(self._saved, _paths(inputs), asked)

    def measure_explanations(
        self, images: int = 100, methods: str | Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        """Measure on test images how faithful each method is to the model, and keep it: the report
        then shows it, and `explanations.json` in the folder.

        Raises DataError where the test images are not here, or what leaves the sites is protected.
        """
        given = explain.Asked(_named(methods))
        return explain.measure(self._saved, self._folder, given, images, self._site)

    def report(self) -> Path:
        """Write the report, one HTML page; returns its path."""
        from fedsight.report.page import build

        return build([self._folder])

    @cached_property
    def _saved(self) -> Saved:
        with torch.inference_mode(False):  # it may be asked for where gradients are off
            return saved.load(self._folder, self._site)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from html import escape

        rows = {key: self.summary.get(key) for key in ("headline", "score", "loss", "rounds")}
        cells = "".join(
            f"<tr><td>{escape(key)}</td><td>{escape(json.dumps(value))}</td></tr>"
            for key, value in rows.items()
            if value is not None
        )
        return f"<b>{escape(str(self.summary.get('name')))}</b><table>{cells}</table>"


def _named(methods: str | Sequence[str] | None) -> Sequence[str] | None:
    return [methods] if isinstance(methods, str) else methods


def _paths(inputs: Any) -> list[Path]:
    """DataError for anything but paths."""
    paths = [inputs] if isinstance(inputs, str | PathLike) else inputs
    if not isinstance(paths, Sequence) or not all(isinstance(one, str | PathLike) for one in paths):
        raise DataError(
            f"expected paths or a tensor of pixels, got {inputs!r:.80}",
            "give a path or a list of paths; run.predict also takes pixels [n, c, h, w], and "
            "several tensors become one by torch.stack",
        )
    return [Path(path) for path in paths]


class Series:
    """A finished series: runs of one program that differ only in their seed, and their folder."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        """Raises StoreError if `folder` holds no series, or one that has not finished."""
        self._folder = Path(folder)
        self._kept: object = None
        self._facts = RunStore(self._folder).read_json(SERIES)
        if "figures" not in self._facts:
            raise StoreError(
                f"the series in {folder} is not finished", f"finish it: fedsight resume {folder}"
            )

    def __repr__(self) -> str:
        mean = self.figures.get("federated", {}).get("mean")
        figure = f", {self._facts['headline']} {mean:.4f}" if isinstance(mean, float) else ""
        return f"<Series {self._facts['name']!r}: {len(self.seeds)} seeds{figure}, {self.folder}>"

    @property
    def folder(self) -> Path:
        """The folder that holds the runs and `series.json`."""
        return self._folder

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order of `runs`."""
        return tuple(self._facts["seeds"])

    @property
    def figures(self) -> Mapping[str, Any]:
        """By arm (`federated`, `alone`, `pooled`): `mean`, standard `deviation`, `low` and `high`,
        the 95 % interval of the mean, and the `values` by seed."""
        figures: Mapping[str, Any] = self._facts["figures"]
        return figures

    @property
    def differences(self) -> Mapping[str, Any]:
        """The same of differences within each seed, such as `federated_minus_alone`."""
        differences: Mapping[str, Any] = self._facts["differences"]
        return differences

    @property
    def sites(self) -> Mapping[str, Any] | None:
        """The same for each site; None where sites have other images with every seed."""
        sites: Mapping[str, Any] | None = self._facts["sites"]
        return sites

    @cached_property
    def runs(self) -> list[Run]:
        """The runs, one for each seed."""
        found = [Run(self._folder / name) for name in self._facts["runs"]]
        for run in found:
            run._kept = self._kept
        return found

    def report(self) -> Path:
        """Write the report of all runs side by side, one HTML page; returns its path."""
        from fedsight.report.page import build

        return build([run.folder for run in self.runs], self._folder / "report.html")
