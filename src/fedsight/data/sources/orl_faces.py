"""The ORL faces: sites with a few people each, tested on people that no site trains on."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from fedsight.core.draws import draws
from fedsight.core.errors import DataError, Problem
from fedsight.data.assembly import Record
from fedsight.data.base import Dataset, Side, sources
from fedsight.data.duplicates.counts import Handling
from fedsight.data.fetch.cache import fetched
from fedsight.data.fetch.packages import find
from fedsight.data.partition import site_name
from fedsight.data.people import PeopleSource, people

PEOPLE, PICTURES = 40, 10
LEAST = 4  # unseen people: two to choose a threshold on, two to test it on


@sources.add("orl-faces", licence="free for research with credit", images="400, 92x112 grey")
class OrlFaces(PeopleSource):
    """40 people, 10 images each; `fedsight data get orl-faces` fetches them.

    `people_seed` draws the `unseen_people` of the test part; the others are dealt out to `sites`.
    """

    sample: ClassVar[bool] = True

    duplicates: Handling = "keep"
    near_duplicates: Handling = "keep"
    # [height, width] or a square's side; the files have [112, 92]
    size: Side | Annotated[tuple[Side, Side], Field(strict=False)] = (56, 46)
    sites: int = Field(10, ge=1, le=PEOPLE)
    unseen_people: int = Field(10, ge=LEAST, lt=PEOPLE)  # of the test part
    people_seed: int = 0  # who is unseen, and who is at which site

    def needs(self) -> tuple[str, ...]:
        """The images."""
        return ("orl-faces",)

    def check(self) -> list[Problem]:
        """Problems of every source, and more sites than people to train on."""
        found = [self._crowded()] if self.sites > PEOPLE - self.unseen_people else []
        return [*super().check(), *found]

    def open(self) -> Dataset:
        """Read the images. Unseen people belong to no site."""
        trained = PEOPLE - self.unseen_people
        if self.sites > trained:
            raise DataError(self._crowded().cause, self._crowded().cure)
        folder, package = fetched("orl-faces"), find("orl-faces")
        records = [
            Record(
                str(folder / f"s{person + 1}" / f"{picture}.pgm"),
                f"{place:02d}",
                site_name(place * self.sites // trained, self.sites)
                if place < trained
                else "unseen",
                "test" if place >= trained else "train",
            )
            for place, person in enumerate(draws(self.people_seed, "orl-faces").permutation(PEOPLE))
            for picture in range(1, PICTURES + 1)
        ]
        facts = {"title": "ORL faces", "licence": package.licence, "credit": package.credit}
        opened = people(records, self, "orl-faces")
        return replace(opened, test=replace(opened.test, sites=None), facts=facts)

    def _crowded(self) -> Problem:
        cause = f"{PEOPLE - self.unseen_people} people cannot be divided among {self.sites} sites"
        return Problem("data.sites", cause, "lower data.sites or data.unseen_people")
