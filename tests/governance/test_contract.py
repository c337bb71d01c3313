"""The site's contract: each clause refuses what it should, and the message names the clause."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import ConfigError, DeployError
from fedsight.deploy.site.owner import TEMPLATE, parse_owner, read_contract
from fedsight.governance.contract import (
    ADDED_AT_SITE,
    ADDED_BY_COORDINATOR,
    EVALUATIONS,
    PROTECTION_BY_NOISE,
    Contract,
    protections,
)
from fedsight.governance.ledger import SumLimit
from fedsight.privacy.base import Mechanism, Protected, mechanisms
from fedsight.privacy.secure import Secure
from fedsight.program.config import read
from fedsight.tasks.classification import Classification


def named(name: str) -> Any:
    return SimpleNamespace(registered=name, counts_images=False)


def program(noise: float | None = None, privacy: str = "none", secure: Any = "none") -> Any:
    """The parts of a program that a contract examines."""
    kind = mechanisms.get(privacy)
    stated = {"noise_multiplier": noise} if issubclass(kind, Protected) else {}
    return SimpleNamespace(
        task=named("classify"),
        fingerprint="ab" * 32,
        rounds=SimpleNamespace(rounds=20),
        secure=Secure(name=secure),
        privacy=kind(**stated),
        algorithm=SimpleNamespace(counts=False),
    )


def refusal(contract: Contract, asked: Any) -> str:
    with pytest.raises(DeployError) as caught:
        contract.check_program(asked)
    clause = caught.value.cause.split(":")[0]
    assert clause.removeprefix("contract.") in Contract.model_fields
    assert clause in caught.value.cure
    return caught.value.cause


@pytest.mark.parametrize("told", [{}, {"counts": True}])
def test_sums_that_say_numbers_of_classes_are_permitted_where_runs_are_told_them(
    told: dict[str, Any],
) -> None:
    of = dict.fromkeys(("bounds_images", "on_public"), False)
    for secure in ("none", "secagg"):
        asked = program(secure=secure)
        asked.algorithm = SimpleNamespace(counts=True, registered="ncm", **of)
        Contract(**told).check_program(asked)
        if secure == "none":
            assert "'ncm' show how many" in refusal(Contract(counts=False), asked)
        else:
            Contract(counts=False).check_program(asked)


def test_an_empty_contract_permits_any_program() -> None:
    contract = Contract()
    for one in (program(), program(privacy="none", secure="none"), program(privacy="local")):
        contract.check_program(one)
    contract.check_sites(1)
    contract.check_operators(())
    assert (contract.release, contract.most_evaluations) == ("exact", None)
    assert contract.limit is None


def test_protections_are_the_ones_that_the_program_states() -> None:
    assert protections(program()) == ()
    assert protections(program(privacy="none", secure="none")) == ()
    assert protections(program(privacy="central", secure="secagg")) == (
        *("secure_aggregation", "client_dp"),
    )
    assert protections(program(secure="quantised")) == ()
    for trusting in (program(secure="secagg"), program(privacy="distributed", secure="secagg")):
        trusting.secure = Secure(name="secagg", split_view=False)
        assert protections(trusting) == (), "it trusts the coordinator to follow the protocol"
    assert set(PROTECTION_BY_NOISE.values()) == ADDED_AT_SITE | ADDED_BY_COORDINATOR


PARTS = {
    "secagg": "secure_aggregation",
    "central": "client_dp",
    "matrix": "client_dp",
    "local": "local_dp",
    "example": "example_dp",
    "distributed": "distributed_dp",
}


def test_every_mechanism_that_protects_has_a_protection() -> None:
    protecting = {name for name in mechanisms.names() if mechanisms.get(name).unit}
    assert {*PARTS} - {"secagg"} == protecting


class Pretending(Mechanism):
    """A plug-in whose name promises what it does not do."""

    registered: ClassVar[str | None] = "local_dp"


class Unnamed(Mechanism):
    """A plug-in that adds noise at the site, under a name that says nothing."""

    registered: ClassVar[str | None] = "mine"
    unit: ClassVar[Literal["", "client", "example"]] = "client"
    noise_at: ClassVar[Literal["", "coordinator", "site", "steps", "shares"]] = "site"


def test_a_protection_follows_from_what_a_mechanism_does_not_from_its_name() -> None:
    asked = program()
    asked.privacy = Pretending()
    assert protections(asked) == ()
    contract = Contract(require=("local_dp",), min_noise_multiplier=1.0)
    assert "local_dp is required, and the program has no protection" in refusal(contract, asked)
    asked.privacy = Unnamed()
    assert protections(asked) == ("local_dp",)


@pytest.mark.parametrize("required", sorted(set(PARTS.values())))
def test_a_program_without_a_required_protection_is_refused(required: Any) -> None:
    contract = Contract(require=(required,), min_noise_multiplier=0.5)
    assert f"contract.require: {required} is required" in refusal(contract, program())
    for name, protection in PARTS.items():
        asked = program(1.0, secure="secagg") if name == "secagg" else program(1.0, privacy=name)
        if protection == "secure_aggregation" == required:
            Contract(require=(required,)).check_program(asked)
        elif protection == required:
            contract.check_program(asked)
        else:
            assert f"the program has {protection}" in refusal(contract, asked)


@pytest.mark.parametrize("required", ["client_dp", "local_dp", "example_dp", "distributed_dp"])
def test_a_contract_that_requires_noise_says_how_much(required: str, tmp_path: Path) -> None:
    def read(**clauses: Any) -> Contract:
        table = {"data": {"name": "fashion-mnist-12k"}, "contract": clauses}
        return parse_owner(table, tmp_path).contract

    for require in ([required], ["secure_aggregation", required]):
        with pytest.raises(ConfigError) as caught:
            read(require=require)
        (problem,) = caught.value.problems
        assert problem.where == "contract.min_noise_multiplier"
        assert f"contract.require names {required}" in problem.cause
        assert read(require=require, epsilon=3.0).epsilon == 3.0
        assert read(require=require, min_noise_multiplier=0.5).min_noise_multiplier == 0.5
    assert read(require=["secure_aggregation"]).min_noise_multiplier is None


def test_a_program_with_too_little_noise_is_refused() -> None:
    contract = Contract(min_noise_multiplier=1.0)
    contract.check_program(program(1.0, privacy="local"))
    for noise, states in ((0.5, "states 0.5"), (None, "states none")):
        why = refusal(contract, program(noise, privacy="local"))
        assert "privacy.noise_multiplier must be 1 or more" in why
        assert states in why
    assert "states none" in refusal(contract, program())


def test_only_whole_fingerprints_name_programs(tmp_path: Path) -> None:
    fingerprint = program().fingerprint
    Contract(programs=(fingerprint,)).check_program(program())
    assert fingerprint in refusal(Contract(programs=("f" * 64,)), program())
    for short in (fingerprint[:12], fingerprint[:63], "", fingerprint + "0"):
        table = {"data": {"name": "fashion-mnist-12k"}, "contract": {"programs": [short]}}
        with pytest.raises(ConfigError) as caught:
            parse_owner(table, tmp_path)
        assert caught.value.problems[0].where == "contract.programs.0"
        assert "expected 64 hex digits" in caught.value.problems[0].cause


def test_runs_have_only_the_room_that_the_contract_leaves_them() -> None:
    contract = Contract(runs=2, disk=1.0)
    contract.check_room(2, 1 << 30)
    with pytest.raises(DeployError, match=r"contract\.runs: 3 runs .* and 2 may"):
        contract.check_room(3, 0)
    with pytest.raises(DeployError, match=r"contract\.disk: runs occupy 2 GB"):
        contract.check_room(1, 2 << 30)


def test_a_contract_protects_if_it_bounds_epsilon_or_requires_anything() -> None:
    assert not Contract().protected
    assert Contract(epsilon=1.0).protected
    assert Contract(require=("secure_aggregation",)).protected


def test_only_the_contracts_tasks_are_trained() -> None:
    Contract(tasks=("classify",)).check_program(program())
    for tasks in ((), ("segment",)):
        assert "the contract permits the tasks" in refusal(Contract(tasks=tasks), program())


def test_counts_and_announcements_need_the_owners_word_where_images_are_hidden() -> None:
    hiding: tuple[dict[str, Any], ...] = (
        {"epsilon": 1.0},
        {"figures": "noised"},
        {"require": ("example_dp",), "min_noise_multiplier": 1.0},
    )
    for contract, told in ((Contract(), True), *((Contract(**one), False) for one in hiding)):
        assert (contract.tells_counts, contract.announces) == (told, told)
    allowing = Contract(epsilon=1.0, counts=True, announce=True)
    assert allowing.tells_counts
    assert allowing.announces


def test_rounds_beyond_the_contracts_are_refused() -> None:
    Contract(rounds=20).check_program(program())
    assert "contract.rounds: the contract permits 19 rounds, and the program has 20" in refusal(
        Contract(rounds=19), program()
    )


def test_a_round_with_too_few_sites_is_refused() -> None:
    contract = Contract(sites=3)
    contract.check_sites(3)
    with pytest.raises(DeployError, match="at least 3 sites, and there are 2"):
        contract.check_sites(2)


def test_epsilon_requires_noise_that_the_site_adds() -> None:
    contract = Contract(epsilon=3.0)
    assert "adds no noise at the site" in refusal(contract, program(secure="secagg"))
    for name in ("local", "example", "distributed"):
        contract.check_program(program(privacy=name))
    for name in ("central", "matrix"):
        assert "noise that the coordinator promises" in refusal(contract, program(privacy=name))
        trusting = Contract(epsilon=3.0, trust_coordinator_noise=True)
        trusting.check_program(program(2.0, privacy=name))
        assert refusal(trusting, program(privacy=name)).startswith(
            "contract.epsilon: noise that the coordinator adds can be counted only if the "
            "program states privacy.noise_multiplier"
        )
    assert contract.limit is not None
    limit = contract.limit
    assert (limit.epsilon, limit.delta, limit.trusted) == (3.0, 1e-5, False)


@pytest.mark.parametrize("clause", [{"epsilon": 1.0}, {"require": ("secure_aggregation",)}])
def test_a_contract_that_asks_for_protection_releases_no_figures_unless_it_says_so(
    clause: Any,
) -> None:
    assert Contract().release == "exact"
    assert Contract(figures="none").release == "none"
    assert Contract(**clause).release == "none"
    for release in ("none", "exact", "noised"):
        assert Contract(**clause, figures=release).release == release
    assert Contract(**clause).most_evaluations == EVALUATIONS
    assert Contract(**clause, evaluations=7).most_evaluations == 7
    assert Contract(evaluations=0).most_evaluations == 0


names = st.lists(st.sampled_from(["anna", "ben", "carl"]), max_size=3, unique=True)


@given(names, names)
def test_only_listed_operators_may_start_a_job(asking: list[str], named: list[str]) -> None:
    contract = Contract(operators=tuple(named))
    if set(asking) & set(named):
        contract.check_operators(asking)
        return
    with pytest.raises(DeployError, match=r"contract\.operators: ") as caught:
        contract.check_operators(asking)
    assert all(name in caught.value.cause for name in asking)
    assert asking or "no operator has signed" in caught.value.cause


BAD: dict[str, Any] = {
    "epsilon": [0, -1.0, float("inf"), float("nan"), "3"],
    "delta": [0, 1, -1e-5, float("nan")],
    "sites": [0, 2.5, True, "3"],
    "rounds": [0, "many"],
    "require": ["secure_aggregation", ["secure agregation"], [1]],
    "operators": ["anna"],
    "figures": ["yes", 1, True],
    "test_images": [0, 1.5],
    "evaluations": [-1, "many"],
    "figures_noise": [0.0, float("nan")],
    "attempts": [0, 1.5],
    "sums": [0, "any"],
    "runs": [0],
    "disk": [0, "1 GB"],
    "min_noise_multiplier": [0, -1.0],
    "data_set": ["", 3],
    "lists": [0, "any"],
    "epsilom": [3.0],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, v) for key, values in BAD.items() for v in values]
)
def test_an_invalid_clause_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    table = {"data": {"name": "fashion-mnist-12k"}, "contract": {key: value}}
    with pytest.raises(ConfigError) as caught:
        parse_owner(table, tmp_path)
    assert caught.value.problems[0].where.startswith(f"contract.{key}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text("[contract]\nsites = ")
    with pytest.raises(ConfigError):
        read_contract(path)


def test_the_template_is_a_contract_with_every_clause(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(TEMPLATE)
    assert read_contract(path) == Contract()
    # What goes with other figures than the template's is left out.
    sections = re.sub(r"\n# figures_lists.*", "", TEMPLATE[TEMPLATE.index("[contract]") :])
    path.write_text(sections.replace("\n# ", "\n"))
    found = Contract.model_validate(read(path)["contract"])
    assert (found.epsilon, found.min_noise_multiplier) == (8.0, 1.0)
    assert found.require == ("secure_aggregation",)


def test_data_set_names_that_look_the_same_share_one_budget() -> None:
    names = ("R\u00f6ntgen", "Ro\u0308ntgen", " R\u00f6ntgen ")
    assert {Contract(data_set=name).data_set for name in names} == {"R\u00f6ntgen"}
    with pytest.raises(ValueError, match="at least 1 item"):
        Contract(data_set="  ")


def test_one_list_of_sites_is_summed_where_only_masks_protect() -> None:
    masks = ("secure_aggregation",)
    for stated in PROTECTION_BY_NOISE.values():
        noise = (*masks, stated)
        assert Contract().most_sums(noise) is None
        assert Contract(require=masks).most_sums(noise) == 1
        assert Contract(require=masks, min_noise_multiplier=1.0).most_sums(noise) == 1
        charged = Contract(require=masks, epsilon=3.0, trust_coordinator_noise=True)
        hides = stated in ("local_dp", "distributed_dp")
        assert charged.most_sums(noise) == (None if hides else 1)
        assert Contract(require=masks, sums=2).most_sums(noise) == 2
        assert Contract(require=masks, epsilon=3.0, sums=1).most_sums(noise) == 1
        assert Contract(require=masks, lists=3).sum_limit(noise) == SumLimit(1, 3)


def training(steps: int | None, sampling: str, privacy: str = "none", noise: float = 1.0) -> Any:
    """A masked program that trains so many steps on images drawn in this way."""
    found = program(noise, privacy, "secagg")
    found.train = SimpleNamespace(steps=steps, sampling=sampling)
    found.algorithm = SimpleNamespace(counts=False, phases=lambda length: [length])
    return found


def test_lists_are_limited_for_programs_in_which_all_sites_train_alike() -> None:
    masks = ("secure_aggregation",)
    contract = Contract(require=masks, lists=1, programs=("ab" * 32,))
    contract.check_program(training(3, "independent"))
    for unlike in (
        training(None, "independent"),
        training(3, "shuffled"),
        training(3, "balanced"),
        training(3, "shuffled", "example", 1e-9),  # noise of any size hides nothing
    ):
        assert "depends on its number of images" in refusal(contract, unlike)
        Contract(programs=("ab" * 32,)).check_program(unlike)
    margins = training(3, "independent")
    for calibration, weights in ((0.0, None), (0.0, "site"), (1e-6, None)):
        margins.task = Classification(calibration=calibration, class_weights=weights)
        if calibration:
            assert "loss that a site trains with" in refusal(contract, margins)
            Contract(programs=("ab" * 32,)).check_program(margins)
        else:
            contract.check_program(margins)
    bounded = Contract(require=masks, lists=1, programs=("ab" * 32,), min_noise_multiplier=0.5)
    bounded.check_program(training(3, "shuffled", "example"))
    bounded.check_program(training(None, "shuffled", "local"))  # it hides the whole site
    assert "depends on its number" in refusal(bounded, training(None, "shuffled", "example"))
