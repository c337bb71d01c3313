"""Typed, frozen records of the files in a run folder: one class per file and part."""

from __future__ import annotations

import base64
import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fedsight.report.record import (
    PICTURES,
    Cell,
    Count,
    Figure,
    Real,
    Record,
    checked_picture,
)
from fedsight.report.shortcut_records import ShortcutsRecord
from fedsight.report.trust_records import (
    CalibrationRecord,
    GivenTrustRecord,
    OodRecord,
    OverfittingRecord,
    RobustnessRecord,
    SetsRecord,
)


class Data(Record):
    """Source and number of the images or texts."""

    title: str = ""
    licence: str = ""
    credit: str = ""
    train: Count = None
    test: Count = None
    skipped: tuple[str, ...] = ()


class PreprocessRecord(Record):
    """How inputs are made from images or texts."""

    modality: Literal["image", "text"] = "image"


class ModelRecord(Record):
    """The network; `travelling` is the number of parameters that leave a site.

    `notes` say what became of its pretrained weights.
    """

    name: str = ""
    parameters: Count = None
    travelling: Count = None
    notes: tuple[str, ...] = ()


class SiteRecord(Record):
    """One site: its number of training images, in total and by class."""

    name: str
    samples: Count = None
    labels: tuple[Cell, ...] = ()
    unlabelled: tuple[Cell, ...] = ()  # numbers of the classes that it does not label


class Facts(Record):
    """`run.json`: what was run, on which data, in which environment."""

    command: str = ""
    name: str
    fingerprint: str = ""
    fedsight: str = ""
    created: str = ""
    environment: dict[str, Any] = Field(default_factory=dict)
    data: Data = Data()
    preprocess: PreprocessRecord = PreprocessRecord()
    classes: tuple[str, ...] = ()
    model: ModelRecord = ModelRecord()
    algorithm: str = ""
    headline: str = "Accuracy"  # name of the score
    sites: tuple[SiteRecord, ...] = ()
    population: Count = None

    @model_validator(mode="after")
    def _one_count_a_class(self) -> Facts:
        for site in self.sites:
            if site.labels and len(site.labels) != len(self.classes):
                raise ValueError(
                    f"site {site.name!r} counts {len(site.labels)} classes, not {len(self.classes)}"
                )
            if any(label >= len(self.classes) for label in site.unlabelled):
                raise ValueError(f"site {site.name!r} has {len(self.classes)} classes")
        return self


class RoundRecord(Record):
    """One line of `history.jsonl`; bytes and seconds are of this round alone."""

    round: Cell
    score: Figure = None
    loss: Figure = None
    measured_on: str | None = None
    not_measured: dict[str, str] = Field(default_factory=dict)  # sites that are not in the figures
    model: str | None = None  # which one was measured, if not the one that the next round trains
    train_loss: Figure = None
    lr: Figure = None
    cohort: Count = None
    replies: Count = None
    rejected: dict[str, str] = Field(default_factory=dict)
    doubts: dict[str, str] = Field(default_factory=dict)  # why a site may have cheated
    bytes_up: Count = None
    bytes_down: Count = None
    seconds: Figure = None
    virtual_seconds: Figure = None  # since the beginning of the run
    reply_seconds: dict[str, Figure] = Field(default_factory=dict)  # where real time decides


class Score(Record):
    """The task's main figure (0 to 1, for example accuracy), the mean loss, and averages over
    classes of a task with one class per sample."""

    score: Figure = None
    loss: Figure = None
    balanced_accuracy: Figure = None
    macro_f1: Figure = None


class NamedScore(Record):
    """The main figure of one named site."""

    name: str
    score: Figure = None


class ProtectionRecord(Record):
    """The privacy cost of a run, and what it covers."""

    epsilon: Figure = None
    delta: Figure = None
    target: Figure = None
    unit: str = ""
    mechanism: str = ""
    neighbours: str = ""
    sampling: str = ""
    trusts: str = ""
    covers: str = ""
    noise_multiplier: Figure = None
    noise_from: str = ""
    rounds: Count = None
    rounds_planned: Count = None
    stopped: bool = False
    not_covered: tuple[str, ...] = ()


class KeptRecord(Record):
    """Which round's model was kept (`keep`: best or last), by which figure, and which was best."""

    round: Count = None
    keep: str = ""
    by: str = ""
    best: Count = None
    value: Figure = None
    stopped: str = ""  # why training ended early; empty: it did not


class ShorterCodecRecord(Record):
    """A codec that the run's protections refuse; bytes of a site's reply and order in a round."""

    codec: str = ""
    reply: Count = None
    order: Count = None
    shortest_reply: Count = None
    shortest_order: Count = None


class Summary(Record):
    """`summary.json`: the final figures."""

    score: Figure = None
    score_interval: tuple[float, float] | None = None  # 95 %, over other test samples
    score_error: Figure = None  # standard error by the noise of noised figures
    site_errors: dict[str, Figure] = Field(default_factory=dict)  # likewise
    loss: Figure = None
    rounds: Count = None
    seconds: Figure = None
    bytes_up: Count = None
    bytes_down: Count = None
    shorter_codec: ShorterCodecRecord | None = None
    virtual_seconds: Figure = None
    model_sha256: str = ""
    worst_site: NamedScore | None = None
    by_site: dict[str, Score] = Field(default_factory=dict)
    privacy: ProtectionRecord | None = None
    kept: KeptRecord | None = None
    calibration: CalibrationRecord | None = None
    sets: SetsRecord | None = None
    ood: OodRecord | None = None
    overfitting: OverfittingRecord | None = None
    robustness: RobustnessRecord | None = None
    shortcuts: ShortcutsRecord | None = None


class CarriedRecord(Record):
    """Bytes that the server has received from a site and sent to it."""

    received: Count = None
    sent: Count = None


class TrafficRecord(Record):
    """`traffic.json`: what the TLS connections of a federation's run have carried, by site."""

    sites: dict[str, CarriedRecord] = Field(default_factory=dict)


class MarkRecord(Record):
    """A box on a sample's picture: (left, top, right, bottom) in pixels of the picture.

    `kind`: an object that was found, one that was missed, or a detection without an object.
    """

    box: tuple[Real, Real, Real, Real]
    label: str = ""
    kind: Literal["found", "missed", "false"]
    score: Figure = None

    @property
    def drawable(self) -> bool:
        """Whether the box has finite sides that a picture could have."""
        return all(math.isfinite(side) and abs(side) < 1e6 for side in self.box)


class AreasRecord(Record):
    """A transparent picture (base64 PNG) of areas found, missed and false, and its place on a
    sample's picture: (left, top, right, bottom)."""

    image: str
    box: tuple[Real, Real, Real, Real]

    @property
    def drawable(self) -> bool:
        """Whether the place has finite sides, and the picture is one."""
        sides = all(math.isfinite(side) and abs(side) < 1e6 for side in self.box)
        return sides and self.image.startswith(base64.b64encode(PICTURES["png"][:6]).decode())


class SampleRecord(Record):
    """One test image (base64 PNG or JPEG) or text, with the model's answer.

    `site` is empty for the shared test set. `width` and `height` are those of the picture, `full`
    those of the file if the picture is a smaller copy.
    """

    image: str | None = None
    text: str = ""  # if the sample is not an image
    name: str = ""
    site: str = ""
    width: Count = None
    height: Count = None
    full: tuple[Cell, Cell] | None = None
    truth: str
    predicted: str
    probability: Figure = None
    truth_probability: Figure = None
    right: bool
    overlap: Figure = None  # Dice of the areas
    marks: tuple[MarkRecord, ...] = ()
    areas: AreasRecord | None = None

    @property
    def kind(self) -> str:
        """The picture's type, `png` or `jpeg`."""
        head = base64.b64decode((self.image or "")[:16])
        return next((kind for kind, magic in PICTURES.items() if head.startswith(magic)), "png")

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height, if they are those of a picture."""
        width, height = self.width, self.height
        if width is None or height is None or not (0 < width < 1e5 and 0 < height < 1e5):
            return None
        return width, height

    @property
    def small(self) -> bool:
        """Whether the picture is so small that it should be enlarged without smoothing."""
        return self.size is not None and max(self.size) <= 96

    @field_validator("image")
    @classmethod
    def _is_picture(cls, value: str | None) -> str | None:
        return None if value is None else checked_picture(value)


class CurveRecord(Record):
    """A plot of lines over axes from 0 to 1."""

    title: str
    x: str
    y: str
    lines: dict[str, tuple[tuple[Real, Real], ...]] = Field(default_factory=dict)


class TableRecord(Record):
    """A table of figures; the first cell names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Figure, ...], ...] = ()


class OverallRecord(Record):
    """A figure over all test samples, and its 95 % interval if that is known."""

    value: Figure = None
    low: Figure = None
    high: Figure = None


class SpreadRecord(Record):
    """The figure of one site, its 95 % interval, and how many test images it rests on."""

    score: Figure = None
    low: Figure = None
    high: Figure = None
    tested: Count = None


class Evaluation(Record):
    """`evaluation.json`: the final model on the test part; `confusion` is [true, predicted]."""

    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[Cell, ...], ...] = ()  # empty: not for this task
    site_test: str = ""
    personal: bool = False
    sites: dict[str, SpreadRecord] = Field(default_factory=dict)
    figures: dict[str, OverallRecord] = Field(default_factory=dict)
    no_interval: str = ""  # why the main figure has none
    differ: Figure = None  # probability of sites so different if they only differ by chance
    samples: tuple[SampleRecord, ...] = ()
    curves: tuple[CurveRecord, ...] = ()
    tables: tuple[TableRecord, ...] = ()
    withheld: dict[str, str] = Field(default_factory=dict)  # why a site has released no figures
    not_measured: dict[str, str] = Field(default_factory=dict)  # why a site is not in the figures
    noised: tuple[str, ...] = ()  # sites that have added noise to their figures
    failed: dict[str, str] = Field(default_factory=dict)  # what could not be computed, and why

    @model_validator(mode="after")
    def _square(self) -> Evaluation:
        if self.confusion and any(
            len(row) != len(self.classes) for row in (self.confusion, *self.confusion)
        ):
            raise ValueError(f"confusion is not {len(self.classes)} by {len(self.classes)}")
        return self


class Alone(Score):
    """A model trained at one site alone: on the whole test part, and on its own label mix."""

    own_score: Figure = None
    passes: Figure = None  # over its training images


class Together(Score):
    """A common model: on the whole test part, and on each site's own label mix."""

    by_site: dict[str, Figure] = Field(default_factory=dict)
    passes: Figure = None  # over all training images, on average


class GainRecord(Record):
    """The federated figure of a site minus its own model's: the 95 % interval, and on how many
    test images both rest."""

    tested: Count = None
    low: Figure = None
    high: Figure = None
    verdict: str = ""


class KindRecord(Record):
    """The best model of a kind on a site's held-out images: its loss, and the task's figure."""

    loss: Figure = None
    figure: Figure = None


class DeliveredRecord(GainRecord):
    """The model that a site gets, chosen on `held_out` images of its own (0: not chosen), and its
    figure; the interval is that of this figure minus the site's own model's."""

    kind: str = ""
    settings: dict[str, Figure] = Field(default_factory=dict)
    held_out: Count = None
    by_kind: dict[str, KindRecord] = Field(default_factory=dict)
    score: Figure = None
    trust: GivenTrustRecord | None = None

    def held_out_figure(self, kind: str) -> float | None:
        """The figure of the best model of `kind` on the held-out images."""
        return self.by_kind[kind].figure if kind in self.by_kind else None


class Comparison(Record):
    """`comparison.json`: each site alone, federated, pooled, and the model that each site gets."""

    alone: dict[str, Alone] = Field(default_factory=dict)
    sites: dict[str, GainRecord] = Field(default_factory=dict)
    delivered: dict[str, DeliveredRecord] = Field(default_factory=dict)
    pooled: Together = Together()
    federated: Together = Together()
