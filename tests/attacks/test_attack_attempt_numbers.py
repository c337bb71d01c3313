"""A coordinator numbers its attempts at rounds so high that no other run ever gets keys again.

A site begins no attempt twice: the numbers of a run's attempts increase, and a run that the site
does not remember has to begin above all that it has forgotten. It remembers 32 runs. So 33 runs
with the highest number there is left no higher one for anybody, until the owner deleted the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attacked_site import AttackedSite, draw, noise_images, program

from fedsight.core.package import installed
from fedsight.deploy.site import peer_keys
from fedsight.privacy.secagg.keys import Identity
from fedsight.privacy.secagg.messages import Binding
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
HIGHEST = (1 << 53) - 1


def advertise(site: AttackedSite, of: Program, others: list[str], run: str, serial: int) -> str:
    """Begin an attempt at round 1 of a run; the refusal."""
    assert "error" not in site.join(of, run)
    names = (
        (site.home.name, site.identity()),
        *((f"other{n}", key) for n, key in enumerate(others)),
    )
    parameters = of.secure.parameters(len(names))
    counted = (0,) * len(names)
    begun = Binding(
        *(run, of.fingerprint, installed().sha256, 1, serial, "0" * 64),
        *(names, counted, parameters, {"delta": 1}),
    )
    return str(site.ask("advertise", {}, begun.data)[0].get("error", ""))


def honest_after(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, highest: int
) -> tuple[str, str]:
    """What a coordinator that takes the highest number hears; and then an honest one."""
    monkeypatch.setattr(peer_keys, "RUNS", 3)  # each run is proposed
    images = draw(tmp_path / "images", noise_images(6))
    of = program(images, secure={"name": "secagg"}, split={"name": "iid", "sites": 3})
    others = [Identity.at(tmp_path / f"key{n}").public.hex() for n in range(2)]
    site = attack("ward", images)
    heard = [advertise(site, of, others, f"evil{n}", highest) for n in range(peer_keys.RUNS + 1)]
    honest = advertise(site, of, others, "honest", time.time_ns() // 1_000_000)
    return heard[-1], honest


def test_the_highest_number_locks_every_run_out_where_any_is_taken(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_keys, "AHEAD", 1 << 60)
    evil, honest = honest_after(attack, tmp_path, monkeypatch, HIGHEST)
    assert evil == ""
    assert "repeats an attempt" in honest


def test_ours_takes_none_that_is_far_ahead_of_its_clock(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil, honest = honest_after(attack, tmp_path, monkeypatch, HIGHEST)
    assert "more than a day" in evil
    assert honest == ""
