"""A contract that names a program by the first digits of its fingerprint.

Twelve hex digits are 48 bits: after 2^48 fingerprints on average, whoever writes programs has a
second one that begins alike. The seed alone gives enough of them. The test searches two digits,
which takes a hundred programs; each further digit takes sixteen times as many.
"""

from __future__ import annotations

from dataclasses import replace

import federations
import pytest
from pydantic import ValidationError

from fedsight.core.errors import DeployError
from fedsight.governance.contract import Contract
from fedsight.program.program import Program

DIGITS = 2


class ByPrefix(Contract):
    """The clause as it was: the beginning of a fingerprint names a program."""

    def check_program(self, program: Program) -> None:
        if not any(program.fingerprint.startswith(one[:DIGITS]) for one in self.programs):
            raise DeployError("contract.programs: the contract does not list the program")


def found(permitted: Program) -> Program:
    """Another program whose fingerprint begins as that of `permitted` does."""
    for seed in range(1, 1 << 14):
        other = replace(permitted, seed=seed)
        if other.fingerprint[:DIGITS] == permitted.fingerprint[:DIGITS]:
            return other
    raise AssertionError("none in 2^14 programs")


def test_a_second_program_that_begins_alike_is_found_and_refused() -> None:
    permitted = federations.program()
    other = found(permitted)
    assert other.fingerprint != permitted.fingerprint
    ByPrefix(programs=(permitted.fingerprint,)).check_program(other)
    ours = Contract(programs=(permitted.fingerprint,))
    ours.check_program(permitted)
    with pytest.raises(DeployError, match=r"contract\.programs: the contract does not list"):
        ours.check_program(other)
    with pytest.raises(ValidationError, match="expected 64 hex digits"):
        Contract(programs=(permitted.fingerprint[:12],))
