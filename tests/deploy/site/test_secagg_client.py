"""A site's side of secure aggregation refuses a round whose sum would carry too little noise."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import tiny
import torch

from fedsight.core.errors import SiteError
from fedsight.deploy.site.owner import parse_owner
from fedsight.deploy.site.secagg_client import SiteSecAgg
from fedsight.deploy.site.trainer import TrainedUpdate
from fedsight.engines import protected as plans
from fedsight.engines.protected import fingerprint, plan_of
from fedsight.privacy.event import Event
from fedsight.privacy.noise import Noise
from fedsight.privacy.secagg.keys import Identity
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.pack import size
from fedsight.privacy.secagg.server import SecAggServer
from fedsight.program.program import Program

SITES = ("a", "b", "c", "d")
SIZES = {"delta": 50}
Seats = list[tuple[SiteSecAgg, bytes]]  # each with what the others sealed for it
VECTOR = torch.arange(50.0)


def program() -> Program:
    return tiny.program(
        privacy={"name": "distributed", "noise_multiplier": 1.0},
        secure={"name": "secagg"},
        rounds={"weighting": "uniform"},
    )


def guards(folder: Path, of: Program, terms: int, survivors: int | None = None) -> Seats:
    """Sites that have their keys for a round of four, which is said to be one of `terms`."""
    found, roster = [], []
    for name in SITES:
        home = folder / name
        (home / "memory").mkdir(parents=True)
        guard = SiteSecAgg(home, name)
        guard.join(of, parse_owner({"data": {"name": "fashion-mnist-12k"}}, home), "run1", home)
        found.append(guard)
        roster.append((name, Identity.at(home / "identity.key").public.hex()))
    parameters = of.secure.parameters(len(SITES))
    parameters = replace(parameters, survivors=survivors or parameters.survivors)
    table = plan_of(of, SIZES, 1, partial(Noise, 0)).quantiser(terms).table()
    binding = Binding("run1", 1, 1, fingerprint(VECTOR), tuple(roster), parameters, table)
    server = SecAggServer(binding)
    for number, guard in enumerate(found):
        server.advert(number, bytes(guard.answers["advertise"]({}, binding.data)[1]))
    for number, guard in enumerate(found):
        server.share(number, bytes(guard.answers["share"]({}, server.adverts(number))[1]))
    return [(guard, server.inbox(number)) for number, guard in enumerate(found)]


def fields(terms: int) -> dict[str, object]:
    return {"quantiser": {"sizes": SIZES, "cap": 1, "terms": terms}}


def test_noise_of_a_large_round_is_not_enough_for_a_small_one(tmp_path: Path) -> None:
    """A cheating coordinator: each of four sites is to add the noise of one of ten."""
    guard, _ = guards(tmp_path, program(), 10)[0]
    with pytest.raises(SiteError, match=r"for 10 sites of which 9 survive, .* unmasked by 3"):
        guard.protection(1, VECTOR, fields(10), b"")
    other, _ = guards(tmp_path / "again", program(), 4)[0]
    with pytest.raises(SiteError, match="were not made for this round 1, model and quantiser"):
        other.protection(1, VECTOR, fields(10), b"")


def test_fewer_survivors_than_the_program_says_are_refused_before_any_key(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"the round has 2 survivors, but .* at least 3"):
        guards(tmp_path, program(), 4, survivors=2)


def test_what_leaves_is_charged_as_the_sum_is_accounted(tmp_path: Path) -> None:
    of = program()
    guard, inbox = guards(tmp_path, of, 4)[0]
    protect = guard.protection(1, VECTOR, fields(4), inbox)
    data, (event, times) = protect(TrainedUpdate({"delta": torch.zeros(50)}, 1, {}))
    assert len(data) == size(50, plan_of(of, SIZES, 1, partial(Noise, 0)).quantiser(4).modulus)
    assert event is not None
    assert (Event.of(event).kind, Event.of(event).noise, times) == ("skellam", 0.5, 1)
    key = tmp_path / "a" / "noise.key"
    assert key.stat().st_mode & 0o777 == 0o600


def test_another_attempt_at_a_round_has_other_noise(tmp_path: Path) -> None:
    """Else the difference of two sums, the second without a site, would show that site's update."""
    of = program()
    streams = []
    for attempt in ("one", "another"):
        guard, inbox = guards(tmp_path / attempt, of, 4)[0]
        secret = tmp_path / attempt / "a" / "noise.key"
        secret.touch(0o600)
        secret.write_bytes(bytes(32))
        plan = mock.patch.object(plans, "plan_of", wraps=plan_of)
        with plan as made, mock.patch("fedsight.deploy.site.secagg_client.plan_of", made):
            guard.protection(1, VECTOR, fields(4), inbox)
        streams.append(made.call_args.args[3]("x").uniform(8).tolist())
    assert streams[0] != streams[1]


def test_nothing_is_protected_before_a_run_was_agreed_upon(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no run was agreed upon"):
        SiteSecAgg(tmp_path, "a").protection(1, VECTOR, fields(4), b"")
