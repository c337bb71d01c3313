"""The site's contract: each clause refuses what it is there to refuse, and says which it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import ConfigError, DeployError
from fedsight.deploy.site.owner import TEMPLATE, parse_owner, read_contract
from fedsight.governance.contract import AT_THE_SITE, MEANS, PROMISED, Contract, protections
from fedsight.program.config import read


def named(name: str) -> Any:
    return SimpleNamespace(registered=name)


def program(noise: float | None = None, **parts: str) -> Any:
    """What a contract looks at of a program."""
    sections = {name: named(value) for name, value in parts.items()}
    if noise is not None:
        sections["privacy"].noise_multiplier = noise
    rounds = SimpleNamespace(rounds=20)
    return SimpleNamespace(task=named("classify"), fingerprint="ab" * 32, rounds=rounds, **sections)


def refusal(of: Contract, asked: Any) -> str:
    with pytest.raises(DeployError) as caught:
        of.refuse(asked)
    clause = caught.value.cause.split(":")[0]
    assert clause.removeprefix("contract.") in Contract.model_fields
    assert clause in caught.value.cure
    return caught.value.cause


def test_an_empty_contract_permits_everything() -> None:
    of = Contract()
    for one in (program(), program(privacy="none", secure="none"), program(privacy="local")):
        of.refuse(one)
    of.refuse_few(1)
    of.refuse_asker(())
    of.refuse_figures()
    assert of.limit is None


def test_protections_are_what_the_program_states() -> None:
    assert protections(program()) == ()
    assert protections(program(privacy="none", secure="none")) == ()
    assert protections(program(privacy="central", secure="secagg")) == (
        *("secure_aggregation", "client_dp"),
    )
    assert protections(program(privacy="new")) == ("new",)
    assert set(MEANS.values()) == AT_THE_SITE | PROMISED | {"secure_aggregation"}


@pytest.mark.parametrize("required", sorted(set(MEANS.values())))
def test_a_required_protection_is_demanded(required: Any) -> None:
    of = Contract(require=(required,))
    assert f"contract.require: {required} is demanded" in refusal(of, program())
    for name, means in MEANS.items():
        asked = program(**{"secure" if name == "secagg" else "privacy": name})
        if means == required:
            of.refuse(asked)
        else:
            assert f"the program has {means}" in refusal(of, asked)


def test_rounds_beyond_the_contracts_are_refused() -> None:
    Contract(rounds=20).refuse(program())
    assert "contract.rounds: it permits 19 rounds, and there are 20" in refusal(
        Contract(rounds=19), program()
    )


def test_epsilon_needs_noise_that_the_site_itself_adds() -> None:
    of = Contract(epsilon=3.0)
    assert "adds no noise at the site" in refusal(of, program(secure="secagg"))
    for name in ("local", "example", "distributed"):
        of.refuse(program(privacy=name))
    for name in ("central", "matrix"):
        assert "noise that the coordinator promises" in refusal(of, program(privacy=name))
        trusting = Contract(epsilon=3.0, trust_coordinator_noise=True)
        trusting.refuse(program(privacy=name, noise=2.0))
        assert refusal(trusting, program(privacy=name)).startswith(
            "contract.epsilon: of noise that the coordinator promises, only "
            "privacy.noise_multiplier can be counted here"
        )
    assert of.limit is not None
    assert (of.limit.epsilon, of.limit.delta, of.limit.trusted) == (3.0, 1e-5, False)


def test_figures_leave_unless_epsilon_or_the_owner_says_otherwise() -> None:
    Contract().refuse_figures()
    Contract(epsilon=1.0, figures=True).refuse_figures()
    with pytest.raises(DeployError, match=r"contract\.figures: .* since epsilon is set"):
        Contract(epsilon=1.0).refuse_figures()
    with pytest.raises(DeployError, match=r"contract\.figures: .* may not leave\n"):
        Contract(figures=False).refuse_figures()


names = st.lists(st.sampled_from(["anna", "ben", "carl"]), max_size=3, unique=True)


@given(names, names)
def test_only_operators_who_are_named_may_ask(asking: list[str], named: list[str]) -> None:
    of = Contract(operators=tuple(named))
    if set(asking) & set(named):
        of.refuse_asker(asking)
        return
    with pytest.raises(DeployError, match=r"contract\.operators: ") as caught:
        of.refuse_asker(asking)
    assert all(name in caught.value.cause for name in asking)
    assert asking or "nobody has signed" in caught.value.cause


BAD: dict[str, Any] = {
    "epsilon": [0, -1.0, float("inf"), float("nan"), "3"],
    "delta": [0, 1, -1e-5, float("nan")],
    "sites": [0, 2.5, True, "3"],
    "rounds": [0, "many"],
    "require": ["secure_aggregation", ["secure agregation"], [1]],
    "operators": ["anna"],
    "figures": ["yes", 1],
    "data_set": ["", 3],
    "epsilom": [3.0],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, v) for key, values in BAD.items() for v in values]
)
def test_a_clause_that_cannot_be_meant_is_refused_by_name(
    tmp_path: Path, key: str, value: Any
) -> None:
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


def test_names_of_data_sets_that_look_the_same_are_one_account() -> None:
    names = ("R\u00f6ntgen", "Ro\u0308ntgen", " R\u00f6ntgen ")
    assert {Contract(data_set=name).data_set for name in names} == {"R\u00f6ntgen"}
    with pytest.raises(ValueError, match="at least 1 item"):
        Contract(data_set="  ")
