"""Records of what a run says of shortcuts: spots of an image that decide at one site, or at all."""

from __future__ import annotations

from pydantic import Field

from fedsight.report.record import Count, Figure, Real, Record

Box = tuple[Real, Real, Real, Real]


class PastedRecord(Record):
    """From how many images a spot was taken, on how many of other classes it was pasted, how many
    were then given the class, and of how many its odds at least doubled."""

    donors: Count = None
    tried: Count = None
    made: Count = None
    raised: Count = None


class SpotRecord(Record):
    """A spot of the images of one class, and for how many of them it matters most; `box` has its
    left, top, right and bottom as shares of the sides."""

    label: str
    box: Box
    hottest: Count = None
    images: Count = None
    pasted: PastedRecord = PastedRecord()


class CommonRecord(SpotRecord):
    """A spot that decides for its class by itself, and at how many sites that is certain."""

    sites: Count = None


class ElsewhereRecord(Record):
    """The same counts at the other sites together."""

    hottest: Count = None
    images: Count = None


class FlaggedRecord(SpotRecord):
    """A spot that matters most for more images at one site than elsewhere; `verdict`: whether,
    pasted on other images, it speaks for the class more often there (`shortcut`), was not found to
    (`differs`), or could not be tested (`untested`)."""

    site: str
    verdict: str = ""
    p: Figure = None  # adjusted for several tests
    interval: tuple[float, float] | None = None
    elsewhere: ElsewhereRecord = ElsewhereRecord()
    right: Count = None
    lost: Count = None  # right answers that are wrong without the spot
    pasted_elsewhere: PastedRecord = PastedRecord()


class SiteLooksRecord(Record):
    """One site: how much of the attribution is at the border and in the spot that matters most, how
    far its own model agrees, and the classes that too few others have to be compared."""

    images: Count = None
    border: Figure = None
    peak: Figure = None
    agreement: Figure = None
    uncompared: tuple[str, ...] = ()


class ShortcutsRecord(Record):
    """What was found; `reason`: why it was not looked for. Of `pairs` of a site and a class with
    images so many were `compared`; `unasked`: conspicuous spots beyond those that sites are asked
    about; `classes` with a spot that matters, and for how many the sites were not asked about it.
    """

    images: Count = None
    tests: Count = None
    false_alarm: Figure = None
    flagged: tuple[FlaggedRecord, ...] = ()
    everywhere: tuple[CommonRecord, ...] = ()
    pairs: Count = None
    compared: Count = None
    unasked: Count = None
    classes: Count = None
    classes_unasked: Count = None
    by_site: dict[str, SiteLooksRecord] = Field(default_factory=dict)
    reason: str = ""
