"""The program of the demo is one for a federation."""

from __future__ import annotations

from fedsight.deploy import demo
from fedsight.program import config


def test_the_program_of_the_demo_fits_a_federation() -> None:
    program, speed = config.example("fashion", demo.changes(3, 8))
    config.check_elsewhere(program, speed, 3)
    assert (program.name, program.rounds.rounds) == (demo.NAME, 8)
