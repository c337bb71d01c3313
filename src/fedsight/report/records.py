"""Typed, frozen records of the files in a run folder: one class per file and part."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

PNG = b"\x89PNG\r\n\x1a\n"


MOST = 1e100  # of any figure; larger ones cannot be drawn
Whole = Annotated[int, Field(ge=0, le=1 << 53)]


def _drawable(value: float) -> float:
    if math.isfinite(value) and abs(value) > MOST:
        raise ValueError(f"is beyond {MOST:g}")
    return value


Number = Annotated[float, AfterValidator(_drawable)]


class Record(BaseModel):
    """Base class; unknown keys are ignored, so that newer runs stay readable."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Data(Record):
    """Source and number of the images or texts."""

    title: str = ""
    licence: str = ""
    credit: str = ""
    train: Whole | None = None
    test: Whole | None = None
    skipped: tuple[str, ...] = ()


class PreprocessRecord(Record):
    """How inputs are made from images or texts."""

    modality: Literal["image", "text"] = "image"


class ModelRecord(Record):
    """The network; `travelling` is the number of parameters that leave a site.

    `notes` say what became of its pretrained weights.
    """

    name: str = ""
    parameters: Whole | None = None
    travelling: Whole | None = None
    notes: tuple[str, ...] = ()


class SiteRecord(Record):
    """One site: its number of training images, in total and by class."""

    name: str
    samples: Whole
    labels: tuple[Whole, ...] = ()


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
    population: Whole | None = None

    @model_validator(mode="after")
    def _one_count_a_class(self) -> Facts:
        for site in self.sites:
            if site.labels and len(site.labels) != len(self.classes):
                raise ValueError(
                    f"site {site.name!r} counts {len(site.labels)} classes, not {len(self.classes)}"
                )
        return self


class RoundRecord(Record):
    """One line of `history.jsonl`; bytes and seconds are of this round alone."""

    round: Whole
    score: Number | None = None
    loss: Number | None = None
    measured_on: str | None = None
    train_loss: Number | None = None
    lr: Number | None = None
    cohort: Whole | None = None
    replies: Whole | None = None
    rejected: dict[str, str] = Field(default_factory=dict)
    doubts: dict[str, str] = Field(default_factory=dict)  # why a site may have cheated
    bytes_up: Whole | None = None
    bytes_down: Whole | None = None
    seconds: Number | None = None


class Score(Record):
    """The task's main figure (0 to 1, for example accuracy) and the mean loss."""

    score: Number | None = None
    loss: Number | None = None


class NamedScore(Record):
    """The main figure of one named site."""

    name: str
    score: Number | None = None


class ProtectionRecord(Record):
    """The privacy cost of a run, and what it covers."""

    epsilon: Number | None = None
    delta: Number
    target: Number | None = None
    unit: str = ""
    mechanism: str = ""
    neighbours: str = ""
    sampling: str = ""
    trusts: str = ""
    covers: str = ""
    noise_multiplier: Number | None = None
    noise_from: str = ""
    rounds: Whole = 0
    rounds_planned: Whole = 0
    stopped: bool = False
    not_covered: tuple[str, ...] = ()


class Summary(Record):
    """`summary.json`: the final figures."""

    score: Number | None = None
    score_error: Number | None = None  # standard error by the noise of noised figures
    site_errors: dict[str, Number | None] = Field(default_factory=dict)  # likewise
    loss: Number | None = None
    rounds: Whole | None = None
    seconds: Number | None = None
    bytes_up: Whole | None = None
    bytes_down: Whole | None = None
    model_sha256: str = ""
    worst_site: NamedScore | None = None
    by_site: dict[str, Score] = Field(default_factory=dict)
    privacy: ProtectionRecord | None = None


class SampleRecord(Record):
    """One test image (base64 PNG) or text, with the model's answer."""

    image: str | None = None
    text: str = ""  # if the sample is not an image
    name: str = ""
    truth: str
    predicted: str
    probability: Number | None = None
    truth_probability: Number | None = None
    right: bool

    @property
    def small(self) -> bool:
        """Whether the image is so small that it should be enlarged without smoothing."""
        if self.image is None:
            return False
        width, height = struct.unpack(">2I", base64.b64decode(self.image[:32])[16:24])
        return bool(max(width, height) <= 96)

    @field_validator("image")
    @classmethod
    def _is_png(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("is not base64") from error
        if not raw.startswith(PNG) or len(raw) < 24:
            raise ValueError("is not a PNG image")
        return value


class CurveRecord(Record):
    """A plot of lines over axes from 0 to 1."""

    title: str
    x: str
    y: str
    lines: dict[str, tuple[tuple[Number, Number], ...]]


class TableRecord(Record):
    """A table of figures; the first cell names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Number | None, ...], ...] = ()


class Evaluation(Record):
    """`evaluation.json`: the final model on the test part; `confusion` is [true, predicted]."""

    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[Whole, ...], ...] | None = ()  # None: not for this task
    site_test: str = ""
    personal: bool = False
    samples: tuple[SampleRecord, ...] = ()
    curves: tuple[CurveRecord, ...] = ()
    tables: tuple[TableRecord, ...] = ()
    withheld: dict[str, str] = Field(default_factory=dict)  # why a site has released no figures
    noised: tuple[str, ...] = ()  # sites that have added noise to their figures

    @model_validator(mode="after")
    def _square(self) -> Evaluation:
        if self.confusion and any(
            len(row) != len(self.classes) for row in (self.confusion, *self.confusion)
        ):
            raise ValueError(f"confusion is not {len(self.classes)} by {len(self.classes)}")
        return self


class Alone(Score):
    """A model trained at one site alone: on the whole test part, and on its own label mix."""

    own_score: Number | None = None
    passes: Number | None = None  # over its training images


class Together(Score):
    """A common model: on the whole test part, and on each site's own label mix."""

    by_site: dict[str, Number | None] = Field(default_factory=dict)
    passes: Number | None = None  # over all training images, on average


class GainRecord(Record):
    """The federated figure of a site minus its own model's: the 95 % interval, and on how many
    test images both rest."""

    tested: Whole = 0
    low: Number | None = None
    high: Number | None = None
    verdict: str = ""


class Comparison(Record):
    """`comparison.json`: each site alone, federated, pooled."""

    alone: dict[str, Alone]
    sites: dict[str, GainRecord] = Field(default_factory=dict)
    pooled: Together
    federated: Together
