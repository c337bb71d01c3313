"""Typed, frozen records of the files in a run folder: one class per file and part."""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PNG = b"\x89PNG\r\n\x1a\n"


class Record(BaseModel):
    """Base class; unknown keys are ignored, so that newer runs stay readable."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Data(Record):
    """Source and number of the images or texts."""

    title: str = ""
    licence: str = ""
    credit: str = ""
    train: int | None = None
    test: int | None = None
    skipped: tuple[str, ...] = ()


class PreprocessRecord(Record):
    """How inputs are made from images or texts."""

    modality: Literal["image", "text"] = "image"


class ModelRecord(Record):
    """The network; `travelling` is the number of parameters that leave a site.

    `notes` say what became of its pretrained weights.
    """

    name: str = ""
    parameters: int | None = None
    travelling: int | None = None
    notes: tuple[str, ...] = ()


class SiteRecord(Record):
    """One site: its number of training images, in total and by class."""

    name: str
    samples: int
    labels: tuple[int, ...] = ()


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
    population: int | None = None

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

    round: int
    score: float | None = None
    loss: float | None = None
    measured_on: str | None = None
    train_loss: float | None = None
    lr: float | None = None
    cohort: int | None = None
    replies: int | None = None
    rejected: dict[str, str] = Field(default_factory=dict)
    bytes_up: int | None = None
    bytes_down: int | None = None
    seconds: float | None = None


class Score(Record):
    """The task's main figure (0 to 1, for example accuracy) and the mean loss."""

    score: float | None = None
    loss: float | None = None


class NamedScore(Record):
    """The main figure of one named site."""

    name: str
    score: float | None = None


class ProtectionRecord(Record):
    """The privacy cost of a run, and what it covers."""

    epsilon: float | None = None
    delta: float
    target: float | None = None
    unit: str = ""
    mechanism: str = ""
    neighbours: str = ""
    sampling: str = ""
    trusts: str = ""
    covers: str = ""
    noise_multiplier: float | None = None
    noise_from: str = ""
    rounds: int = 0
    rounds_planned: int = 0
    stopped: bool = False
    not_covered: tuple[str, ...] = ()


class Summary(Record):
    """`summary.json`: the final figures."""

    score: float | None = None
    score_error: float | None = None  # standard error by the noise of noised figures
    site_errors: dict[str, float | None] = Field(default_factory=dict)  # likewise
    loss: float | None = None
    rounds: int | None = None
    seconds: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
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
    probability: float | None = None
    truth_probability: float | None = None
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
    lines: dict[str, tuple[tuple[float, float], ...]]


class TableRecord(Record):
    """A table of figures; the first cell names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...] = ()


class Evaluation(Record):
    """`evaluation.json`: the final model on the test part; `confusion` is [true, predicted]."""

    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = ()  # None: not for this task
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

    own_score: float | None = None
    passes: float | None = None  # over its training images


class Together(Score):
    """A common model: on the whole test part, and on each site's own label mix."""

    by_site: dict[str, float | None] = Field(default_factory=dict)
    passes: float | None = None  # over all training images, on average


class GainRecord(Record):
    """The federated figure of a site minus its own model's: the 95 % interval, and on how many
    test images both rest."""

    tested: int = 0
    low: float | None = None
    high: float | None = None
    verdict: str = ""


class Comparison(Record):
    """`comparison.json`: each site alone, federated, pooled."""

    alone: dict[str, Alone]
    sites: dict[str, GainRecord] = Field(default_factory=dict)
    pooled: Together
    federated: Together
