"""Records of what a run measured of trust: calibration, sets, unlike images, generalisation."""

from __future__ import annotations

from pydantic import Field

from fedsight.report.record import Count, Figure, Record


class SiteTrustRecord(Record):
    """One site: expected calibration error, and how prediction sets do in its mix of images, by the
    run's guarantee and by the site's own threshold."""

    ece_before: Figure = None
    ece: Figure = None
    coverage: Figure = None
    size: Figure = None
    own_coverage: Figure = None
    own_size: Figure = None
    images: Count = None


class TrustPart(Record):
    """What was measured of trust; `reason`: why it was not."""

    asked: Figure = None
    images: Count = None
    tested: Count = None
    reason: str = ""
    by_site: dict[str, SiteTrustRecord] = Field(default_factory=dict)
    without: dict[str, str] = Field(default_factory=dict)  # why sites are not in it
    doubts: dict[str, str] = Field(default_factory=dict)  # why sites in it may have cheated
    sums: str = ""  # how sites' sums travelled: exact, masked, noised; empty: none did
    missing: Count = None  # test images that the sums lack
    grouped: bool = False  # whether numbers of images are of groups
    ungrouped: tuple[str, ...] = ()  # sites where nobody knows what belongs together, if others do


class CalibrationRecord(TrustPart):
    """How far confidence is off, before and after scaling by a temperature."""

    ece_before: Figure = None
    ece: Figure = None
    ece_interval: tuple[float, float] | None = None
    temperature: Figure = None
    gap: Figure = None  # confidence less share of right answers, by sums with noise
    noise: Figure = None  # the standard deviation of that


class SetsRecord(TrustPart):
    """Prediction sets: how often they hold the true class, how large they are, for whom."""

    guarantee: str = ""
    always: tuple[str, ...] = ()  # classes that no answer leaves out, and that are in no mean
    reason_by_site: str = ""  # why no site is told of
    covers: str = ""  # what answers are made to hold, if they are no sets of classes
    threshold: Figure = None
    margins: Figure = None
    margin: Figure = None
    coverage: Figure = None
    size: Figure = None
    expected: tuple[float, float] | None = None  # 95 % of what chance makes of the coverage


class OodRecord(TrustPart):
    """Images unlike those of the training: how many test images are called so."""

    threshold: Figure = None
    false_alarm: Figure = None


class GivenTrustRecord(Record):
    """What was measured of the model that a site got, on its own test images."""

    calibration: CalibrationRecord | None = None
    sets: SetsRecord | None = None
    ood: OodRecord | None = None


class SitesMeanRecord(Record):
    """The mean over sites of a figure: of the models that they get, and of their own."""

    federated: Figure = None
    alone: Figure = None


class GapRecord(Record):
    """The shares of training and test images that one model has right, and their difference."""

    train: Figure = None
    test: Figure = None
    gap: Figure = None
    images: Count = None
    interval: tuple[float, float] | None = None


class OverfittingRecord(Record):
    """How much better models are on images that they know."""

    federated: GapRecord | None = None
    pooled: GapRecord | None = None
    sites: SitesMeanRecord | None = None


class CorruptedRecord(Record):
    """The shares of clean and corrupted test images that one model has right; by corruption, at
    each severity."""

    clean: Figure = None
    corrupted: Figure = None
    by_kind: dict[str, tuple[Figure, ...]] = Field(default_factory=dict)


class RobustnessRecord(Record):
    """How models do on corrupted images."""

    federated: CorruptedRecord | None = None
    pooled: CorruptedRecord | None = None
    sites: SitesMeanRecord | None = None


class BinRecord(Record):
    """A bin of the reliability diagram."""

    confidence: Figure = None
    accuracy: Figure = None


class TrustRecord(Record):
    """`trust.json`, as far as the report shows it: the diagrams before and after scaling."""

    reliability: dict[str, tuple[BinRecord, ...]] = Field(default_factory=dict)
