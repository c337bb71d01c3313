"""Rates and times as options give them: `2Mbit`, `10min`."""

from __future__ import annotations

import math
import re

from fedsight.core.errors import ConfigError, Problem

_RATES = {"bit": 1.0, "kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}
_TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def rate(text: str, option: str) -> float:
    """`2Mbit` as bits a second; ConfigError, naming the option, for anything else."""
    return _quantity(text, option, _RATES)


def time(text: str, option: str) -> float:
    """`10min` as seconds; ConfigError, naming the option, for anything else."""
    return _quantity(text, option, _TIMES)


def _quantity(text: str, option: str, units: dict[str, float]) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", text)
    unit = units.get(found[2]) if found else None
    if found is None or unit is None or not 0 < float(found[1]) * unit < math.inf:
        names, usual = ", ".join(units), list(units)[2]
        cause = f"'{text:.40}' is not a number above 0 with one of: {names}"
        raise ConfigError([Problem(option, cause, f"write for example {option} 10{usual}")])
    return float(found[1]) * unit
