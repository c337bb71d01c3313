"""The site's contract: each clause refuses what it should, and the message names the clause."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import ConfigError, DeployError
from fedsight.deploy.site.owner import TEMPLATE, parse_owner, read_contract
from fedsight.governance.contract import (
    ADDED_AT_SITE,
    ADDED_BY_COORDINATOR,
    EVALUATIONS,
    PROTECTION_BY_PART,
    Contract,
    protections,
)
from fedsight.program.config import read


def named(name: str) -> Any:
    return SimpleNamespace(registered=name)


def program(noise: float | None = None, **parts: str) -> Any:
    """The parts of a program that a contract examines."""
    sections = {name: named(value) for name, value in parts.items()}
    if noise is not None:
        sections["privacy"].noise_multiplier = noise
    rounds = SimpleNamespace(rounds=20)
    return SimpleNamespace(task=named("classify"), fingerprint="ab" * 32, rounds=rounds, **sections)


def refusal(contract: Contract, asked: Any) -> str:
    with pytest.raises(DeployError) as caught:
        contract.check_program(asked)
    clause = caught.value.cause.split(":")[0]
    assert clause.removeprefix("contract.") in Contract.model_fields
    assert clause in caught.value.cure
    return caught.value.cause


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
    assert protections(program(privacy="new")) == ("new",)
    assert set(PROTECTION_BY_PART.values()) == (
        ADDED_AT_SITE | ADDED_BY_COORDINATOR | {"secure_aggregation"}
    )


@pytest.mark.parametrize("required", sorted(set(PROTECTION_BY_PART.values())))
def test_a_program_without_a_required_protection_is_refused(required: Any) -> None:
    contract = Contract(require=(required,))
    assert f"contract.require: {required} is required" in refusal(contract, program())
    for name, protection in PROTECTION_BY_PART.items():
        asked = program(**{"secure" if name == "secagg" else "privacy": name})
        if protection == required:
            contract.check_program(asked)
        else:
            assert f"the program has {protection}" in refusal(contract, asked)


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
        trusting.check_program(program(privacy=name, noise=2.0))
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
    "data_set": ["", 3],
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
    sections = TEMPLATE[TEMPLATE.index("[contract]") :]
    path.write_text(sections.replace("\n# ", "\n"))
    found = Contract.model_validate(read(path)["contract"])
    assert found.epsilon == 8.0
    assert found.require == ("secure_aggregation",)


def test_data_set_names_that_look_the_same_share_one_budget() -> None:
    names = ("R\u00f6ntgen", "Ro\u0308ntgen", " R\u00f6ntgen ")
    assert {Contract(data_set=name).data_set for name in names} == {"R\u00f6ntgen"}
    with pytest.raises(ValueError, match="at least 1 item"):
        Contract(data_set="  ")
