"""Runs that are joined by several jobs at the same moment: more than `contract.runs`.

Each run of another program has a site declare what it has, and tells a bit of its labels or files:
whether the images can be opened for it. So there are at most `contract.runs`. Each job counted the
runs first, and made the folder of its own then. A coordinator that began many jobs at once had as
many runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from attacked_site import AttackedSite, draw, noise_images, program

from fedsight.deploy.site import memories
from fedsight.deploy.site.service import SiteService

Attack = Callable[..., AttackedSite]


@pytest.mark.parametrize("weak", [True, False])
def test_two_jobs_find_room_for_one_run_where_both_count_first(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        unlocked = SimpleNamespace(hold=lambda *_: contextlib.nullcontext())
        monkeypatch.setattr(memories, "locks", unlocked)
    monkeypatch.setattr(memories, "LOCK_TIMEOUT", 0.0)
    images = draw(tmp_path / "images", noise_images(6))
    site, of = attack("a", images, runs=1), program(images)
    first, second = site.service, SiteService(site.home, site.home.name)
    occupied, heard = memories.occupied, list[str]()

    def joining(home: Path) -> int:
        """While the first job counts, another one joins a run of its own."""
        if not heard:
            heard.append("")
            site.service = second
            heard[0] = site.join(of, "run2").get("error", "")
            site.service = first
        return occupied(home)

    monkeypatch.setattr(memories, "occupied", joining)
    assert "error" not in site.join(of, "run1")
    assert len(memories.kept(site.home)) == (2 if weak else 1)
    assert heard == ["" if weak else "another job of this site is joining a run"]
    if not weak:
        site.service = second
        assert "contract.runs" in site.join(of, "run3")["error"]
    second.close()
