"""Sites that run different versions of FedSight in one masked sum: the others' learn nothing.

Site and coordinator state the hash of their code to one another. A coordinator that lies states to
each site that site's own, and so has sites of two versions in one round. If one version trains
otherwise than the other, or not at all, the masked sum is the update of the site that runs the
other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from attacked_site import AttackedSite, known, program
from masked_round import MaskedRound, in_the_clear, masked_sites

from fedsight.client.step import Client
from fedsight.core import package
from fedsight.core.types import Order
from fedsight.deploy.site import secagg_client
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
OLDER = package.Package("0.9", "0" * 64)


def as_older(site: AttackedSite) -> None:
    """Have `site` run a version whose training teaches nothing, and a coordinator state this."""
    answer = site.service.answer

    def answered(kind: str, header: str, body: bytes) -> tuple[str, bytes]:
        fields = json.loads(header)
        if "package" in fields:
            fields["package"] = OLDER.table()
        with (
            mock.patch.object(package, "installed", return_value=OLDER),
            mock.patch.object(package, "hash_of", return_value=OLDER.sha256),
            mock.patch.object(Client, "step", Client.blank),
        ):
            return answer(kind, json.dumps(fields), body)

    site.service.answer = answered  # type: ignore[method-assign]


@pytest.fixture
def joined(attack: Attack, tmp_path: Path) -> tuple[list[AttackedSite], Program]:
    """Three sites that have joined a run, two of which run an older version."""
    sites = masked_sites(attack, tmp_path, NAMES)
    of = program(tmp_path / "images-a", secure={"name": "secagg"})
    for site in sites[1:]:
        as_older(site)
    assert all("declared" in site.join(of) for site in sites)
    return sites, of


def test_the_sum_is_one_update_where_keys_are_not_bound_to_the_code(
    joined: tuple[list[AttackedSite], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secagg_client, "_check_package", lambda _: None)
    sites, of = joined
    attacker = MaskedRound(sites, of, Order(1, known(of).initial))
    found = attacker.sum([attacker.train(number) for number in range(3)])["delta"]
    target = in_the_clear(sites[0], of, attacker.order)
    assert target.abs().max() > 1e-3
    assert (found - target).abs().max() < 1e-6


@pytest.mark.parametrize("stated", [package.installed(), OLDER])
def test_ours_have_keys_for_one_code(
    joined: tuple[list[AttackedSite], Program], stated: package.Package
) -> None:
    """Whichever the keys are for, the sites that run the other take no part."""
    sites, of = joined
    with (
        mock.patch("masked_round.installed", return_value=stated),
        pytest.raises(ValueError, match=r"keys .* are for FedSight code with the hash .* runs"),
    ):
        MaskedRound(sites, of, Order(1, known(of).initial))
