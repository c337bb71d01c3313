"""The coordinator is restored from a backup that is older than its last checkpoint: sites that no
longer have what they kept then say so, and those whose owners keep it go on with the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import federations
import pytest
import site_services
from site_runs import owner
from site_services import Places

from fedsight.core.errors import SiteError
from fedsight.deploy.site.memories import folder_of

ROUNDS = 4


@pytest.fixture
def keeping(places: Places, request: pytest.FixtureRequest) -> Iterator[Places]:
    """Sites that keep what algorithms keep for some rounds back."""
    for site in places.names:
        table = owner(places, site)
        places.write_owner(site, {**table, "keep": {"memory_rounds": request.param}})
    yield places
    for site in places.names:
        places.write_owner(site, owner(places, site))


def went_back(places: Places, site_images: Path, run: str) -> federations.Diary:
    """A whole run with a checkpoint after each round; then two of its rounds are lost."""
    program = site_services.program(
        site_images, algorithm={"name": "scaffold"}, rounds={"rounds": ROUNDS}
    )
    federation, link = places.meet(program, run=run)
    whole = federations.Diary()
    site_services.learn(federation, link, whole, durable=lambda: len(whole.checkpoints))
    return whole


@pytest.mark.parametrize("keeping", [0], indirect=True)
def test_a_site_says_that_it_has_nothing_of_that_round_any_more(
    keeping: Places, site_images: Path
) -> None:
    whole = went_back(keeping, site_images, "restored")
    accepted = dict.fromkeys(keeping.names, 2)
    for fresh in ([], keeping.names):  # a new trainer knows it, too
        program = site_services.program(
            site_images, algorithm={"name": "scaffold"}, rounds={"rounds": ROUNDS}
        )
        federation, link = keeping.meet(program, keeping.sit(fresh), "restored")
        with pytest.raises(SiteError, match="what this site kept in round 2 is gone"):
            site_services.learn(federation, link, None, whole.checkpoints[1], accepted, lambda: 2)


@pytest.mark.parametrize("keeping", [2], indirect=True)
def test_a_site_that_keeps_it_goes_on_with_the_same_bits(
    keeping: Places, site_images: Path, tmp_path: Path
) -> None:
    whole = went_back(keeping, site_images, "kept")
    program = site_services.program(
        site_images, algorithm={"name": "scaffold"}, rounds={"rounds": ROUNDS}
    )
    federation, link = keeping.meet(program, keeping.sit(), "kept")
    accepted = dict.fromkeys(keeping.names, 2)
    found = site_services.learn(federation, link, None, whole.checkpoints[1], accepted, lambda: 2)
    last = whole.checkpoints[-1]
    assert federations.sha(found.vector) == federations.sha(last.vector)
    for site in keeping.names:
        kept = folder_of(keeping.root / site, program, "kept") / site
        assert len(list(kept.glob("*.safetensors"))) <= ROUNDS
