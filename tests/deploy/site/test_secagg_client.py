"""A site's secure-aggregation client refuses a round whose sum would have too little noise."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import federations
import pytest
import torch

from fedsight.core.errors import DeployError, SiteError
from fedsight.core.package import installed
from fedsight.core.sums import LIMIT
from fedsight.core.types import Order, PartSpec
from fedsight.deploy.site import secagg_client
from fedsight.deploy.site.enforcement import ContractEnforcement, Requester
from fedsight.deploy.site.owner import SecAggLimits, parse_owner
from fedsight.deploy.site.secagg_client import SiteSecAgg
from fedsight.deploy.site.trainer import TrainedUpdate, TrainStep
from fedsight.engines.protected import encoding_plan_of, order_digest
from fedsight.privacy.event import Event
from fedsight.privacy.noise import Noise, fresh
from fedsight.privacy.secagg.graph import colluding
from fedsight.privacy.secagg.integers import Integers
from fedsight.privacy.secagg.keys import Identity
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.pack import size
from fedsight.privacy.secagg.server import SecAggServer
from fedsight.privacy.secure import Secure
from fedsight.program.program import Program

SITES = ("a", "b", "c", "d")
SIZES = {"delta": 50}
Clients = list[SiteSecAgg]
ORDER = Order(1, torch.arange(50.0))
STEP = TrainStep(ORDER, 0, 0)
DIGEST = order_digest(ORDER)


QUANTISER = {"sizes": SIZES, "cap": 1, "terms": 4}


def program() -> Program:
    return federations.program(
        privacy={"name": "distributed", "noise_multiplier": 1.0},
        secure={"name": "secagg"},
        rounds={"weighting": "uniform"},
    )


def clients(
    folder: Path, of: Program, terms: int, survivors: int | None = None, **contract: object
) -> Clients:
    """Clients with keys for a round of four, whose noise is for a round of `terms`."""
    found, roster = [], []
    for name in SITES:
        home = folder / name
        home.mkdir(parents=True)
        client = SiteSecAgg(home, name)
        table = {"data": {"name": "fashion-mnist-12k"}, "contract": contract}
        owner = parse_owner(table, home)
        enforcement = ContractEnforcement(home, Requester())
        enforcement.begin_run(of, owner, "run1")
        client.join(of, owner, "run1", enforcement.release)
        found.append(client)
        roster.append((name, Identity.at(home / "identity.key").public.hex()))
    parameters = of.secure.parameters(len(SITES))
    parameters = replace(parameters, survivors=survivors or parameters.survivors)
    table = encoding_plan_of(of, SIZES, 1, partial(Noise, 0)).quantiser(terms).table()
    binding = Binding(
        *("run1", of.fingerprint, installed().sha256, 1, 1, DIGEST),
        *(tuple(roster), (0,) * 4, parameters, table),
    )
    server = SecAggServer(binding)
    for number, client in enumerate(found):
        server.advert(number, bytes(client.answers["advertise"]({}, binding.data)[1]))
    for number, client in enumerate(found):
        server.share(number, bytes(client.answers["share"]({}, server.adverts(number))[1]))
    for number, client in enumerate(found):
        server.confirm(number, bytes(client.answers["confirm"]({}, server.inbox(number))[1]))
    return found


def fields(terms: int) -> dict[str, object]:
    return {"quantiser": {"sizes": SIZES, "cap": 1, "terms": terms}}


def test_noise_for_a_large_round_is_refused_in_a_small_one(tmp_path: Path) -> None:
    """A malicious coordinator asks each of four sites for the noise of one site in ten."""
    client = clients(tmp_path, program(), 10)[0]
    with pytest.raises(SiteError, match=r"for 10 sites of which 9 survive, .* unmasked with 3"):
        client.protection(STEP, None, fields(10))
    other = clients(tmp_path / "again", program(), 4)[0]
    with pytest.raises(SiteError, match="were not made for round 1 with this order and quantiser"):
        other.protection(STEP, None, fields(10))


def test_noise_for_a_small_round_is_refused_in_a_large_one(tmp_path: Path) -> None:
    """One site more may be one more that colludes, and no further survivor: at these rates, four of
    five sites are certain to answer and to be honest, and three of six, of which four may answer
    as well. So shares of noise for five, in a round of six, are too few."""
    rates = Secure(name="secagg", dropout=0.1999, corrupt=1 / 6)
    survivors = {sites: rates.parameters(sites).survivors for sites in (5, 6)}
    assert survivors[5] == survivors[6] == 4
    assert [survivors[sites] - colluding(sites, rates.corrupt) for sites in (5, 6)] == [4, 3]
    client = clients(tmp_path, program(), 3)[0]
    with pytest.raises(SiteError, match="are for 3 sites, and 4 have keys for the round"):
        client.protection(STEP, None, fields(3))


def test_fewer_survivors_than_the_program_states_are_refused_before_any_key(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"the round has 2 survivors, but .* at least 3"):
        clients(tmp_path, program(), 4, survivors=2)


def test_an_update_is_charged_as_the_sum_is_accounted(tmp_path: Path) -> None:
    of = program()
    client = clients(tmp_path, of, 4)[0]
    protection = client.protection(STEP, None, fields(4))
    assert protection.charge is not None, "the cost is known before anything is trained"
    event, times = protection.charge
    data = protection.apply(TrainedUpdate({"delta": torch.zeros(50)}, 1, {}))
    assert len(data) == size(
        50, encoding_plan_of(of, SIZES, 1, partial(Noise, 0)).quantiser(4).modulus
    )
    assert event is not None
    assert (Event.of(event).kind, Event.of(event).noise, times) == ("skellam", 0.5, 1)


def test_the_same_update_of_the_same_round_never_gets_the_same_noise(tmp_path: Path) -> None:
    """With equal noise, the difference of two sums, one without a site, would reveal its update."""
    client = clients(tmp_path, program(), 4)[0]
    with mock.patch("fedsight.deploy.site.secagg_client.encoding_plan_of") as made:
        made.side_effect = encoding_plan_of
        client.protection(STEP, None, fields(4))
    noise = made.call_args.args[3]
    assert noise is fresh
    assert not torch.isclose(noise("x").normal(8), noise("x").normal(8)).any()


OWN = {"sums": PartSpec((5,), torch.int64, bound=100), "counts": PartSpec((2,), torch.int64)}
TABLE = Integers.of(OWN, 4).table()


def test_integer_parts_are_sent_with_the_rounds_bound(tmp_path: Path) -> None:
    client = clients(tmp_path, program(), 4)[0]
    for bound in (100, 10_000):  # its own, and that of a larger site
        table = {**TABLE, "bounds": {**TABLE["bounds"], "sums": bound}}
        found = secagg_client._with_bounds(OWN, table, 4)
        assert (found["sums"].bound, found["sums"].values) == (bound, 5)
    with pytest.raises(SiteError, match="were not made for round 1 with this order and quantiser"):
        client.protection(STEP, None, {"quantiser": {**QUANTISER, "integers": TABLE}}, OWN)


@pytest.mark.parametrize(
    "table",
    [
        None,
        [],
        "integers",
        {},
        {"sizes": TABLE["sizes"]},
        {**TABLE, "bounds": [100, 1]},
        {**TABLE, "sizes": {"sums": 5}},
        {**TABLE, "sizes": {**TABLE["sizes"], "sums": 6}},
        {**TABLE, "sizes": {**TABLE["sizes"], "more": 1}},
        *(
            {**TABLE, "bounds": {**TABLE["bounds"], "sums": bound}}
            for bound in (99, -1, 0, 100.0, True, "100", None, LIMIT // 4 + 1)
        ),
        {**TABLE, "bounds": {**TABLE["bounds"], "counts": LIMIT // 4 - 1}},
    ],
    ids=repr,
)
def test_other_integer_parts_than_the_sites_own_are_refused(tmp_path: Path, table: object) -> None:
    client = clients(tmp_path, program(), 4)[0]
    with pytest.raises(SiteError, match="integer parts are not those of this site's program"):
        client.protection(STEP, None, {"quantiser": {**QUANTISER, "integers": table}}, OWN)


def test_integers_that_the_program_does_not_have_are_refused(tmp_path: Path) -> None:
    client = clients(tmp_path, program(), 4)[0]
    with pytest.raises(SiteError, match="integer parts are not those of this site's program"):
        client.protection(STEP, None, {"quantiser": {**QUANTISER, "integers": TABLE}}, {})


def test_no_update_is_protected_before_the_site_joins_a_run(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="has not joined a run"):
        SiteSecAgg(tmp_path, "a").protection(STEP, None, fields(4))


def test_sites_are_counted_in_the_roster_not_as_the_coordinator_reports_them(
    tmp_path: Path,
) -> None:
    with pytest.raises(DeployError, match=r"contract\.sites: .* at least 5 sites, and there are 4"):
        clients(tmp_path, program(), 4, sites=5)


def test_an_owner_states_how_many_colluders_a_program_must_withstand() -> None:
    limits = SecAggLimits(corrupt=0.2)
    limits.check_program(Secure(name="secagg", corrupt=0.2))
    limits.check_program(Secure(name="none", corrupt=0.0))
    with pytest.raises(DeployError, match=r"secure\.corrupt: .* a share of 0\.1 .* requires 0\.2"):
        limits.check_program(Secure(name="secagg", corrupt=0.1))


def test_a_program_withstands_the_drawings_that_its_coordinator_may_try() -> None:
    """The coordinator chooses the program: one with no bits would let it choose the graph."""
    SecAggLimits().check_program(Secure(name="secagg"))
    SecAggLimits(grinding=0).check_program(Secure(name="secagg", grinding=0))
    with pytest.raises(DeployError, match=r"secure\.grinding: .* 2\^0 drawings .* requires 2\^40"):
        SecAggLimits().check_program(Secure(name="secagg", grinding=0))
