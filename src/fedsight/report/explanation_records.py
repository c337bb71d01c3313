"""Typed, frozen records of `explanations.json`: how faithful each method is on a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from fedsight.report.record import Count, Figure, Real, Record, checked_picture


class SpreadRecord(Record):
    """A mean over images with its 95 % interval."""

    mean: Figure = None
    low: Figure = None
    high: Figure = None


class GainRecord(Record):
    """By how much deletion is lower, and insertion higher, on the same images."""

    deletion: SpreadRecord = SpreadRecord()
    insertion: SpreadRecord = SpreadRecord()


class FaithfulnessRecord(Record):
    """A method, or what methods are compared with: means and curves of the answer's score while
    regions are taken away and while only they are shown; the verdict (`result`), in what it
    `fails`, and what is `undecided`."""

    deletion: SpreadRecord = SpreadRecord()
    insertion: SpreadRecord = SpreadRecord()
    shuffled: SpreadRecord | None = None  # likeness to the explanations of shuffled weights
    deletion_curve: tuple[Real, ...] = ()
    insertion_curve: tuple[Real, ...] = ()
    gains: dict[str, GainRecord] = Field(default_factory=dict)  # by what it is compared with
    silent: Figure = None  # the share of images of which it says nothing
    result: str = ""
    fails: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()


class ExplainedRecord(Record):
    """A test image with what each method shows, side by side (base64 PNG)."""

    image: Annotated[str, AfterValidator(checked_picture)]
    name: str = ""
    site: str = ""
    label: str = ""
    score: Figure = None


class ExplanationsRecord(Record):
    """`explanations.json`."""

    images: Count = None
    site: str | None = None
    layer: str | None = None  # that Grad-CAM is made of
    common: bool = False  # whether the images are those that all sites share, not the site's own
    methods: dict[str, FaithfulnessRecord] = Field(default_factory=dict)
    baselines: dict[str, FaithfulnessRecord] = Field(default_factory=dict)
    shuffled_answers: bool | None = None  # whether shuffled weights answer alike; None: not known
    samples: tuple[ExplainedRecord, ...] = ()
