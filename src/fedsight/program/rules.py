"""Which protections go with what: one table that `check` enforces and the docs are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsight.core.errors import Problem

if TYPE_CHECKING:
    from fedsight.program.program import Program

Verdict = Literal["sound", "stated", "refused"]  # stated: sound, with a remark in the report


def _personal(program: Program) -> bool:
    return program.algorithm.registered in ("fedbn", "fedrep")


FEATURES: dict[str, Callable[[Program], bool]] = {
    "central": lambda program: program.privacy.registered == "central",
    "matrix": lambda program: program.privacy.registered == "matrix",
    "local": lambda program: program.privacy.registered == "local",
    "example": lambda program: program.privacy.registered == "example",
    "distributed": lambda program: program.privacy.registered == "distributed",
    "secure aggregation": lambda program: program.secure.rounds_values,
    "no secure aggregation": lambda program: not program.secure.masks,
    "BatchNorm": lambda program: (
        program.model.norm == "batch" and program.algorithm.registered != "fedbn"
    ),
    "BatchNorm kept at the site (FedBN)": lambda program: (
        program.model.norm == "batch" and program.algorithm.registered == "fedbn"
    ),
    "weighting by samples": lambda program: program.rounds.weighting == "samples",
    "a cohort": lambda program: program.rounds.cohort is not None,
    "a quorum": lambda program: program.rounds.quorum is not None,
    "SCAFFOLD": lambda program: program.algorithm.registered == "scaffold",
    "a personal slice (FedBN, FedRep)": _personal,
    "a feature shift": lambda program: program.shift.kind != "none",
}


@dataclass(frozen=True)
class Rule:
    """What is to be said of two features together."""

    a: str
    b: str
    verdict: Verdict
    cause: str = ""
    cure: str = ""
    where: str = ""


_STATISTICS = (
    "running statistics are sums over images that no clip bounds layer by layer, and a noised "
    "variance may be negative"
)
_WEIGHT = (
    "an update's weight would tell how many images its site has, and let one site move the sum by "
    "more than the clip"
)
_GROUP = "set model.norm = 'group' (the default), or keep the norms at the sites with fedbn"
_UNIFORM = "set rounds.weighting = 'uniform'"
_SLICE = (
    "the slice of the model that stays at its site: it is trained without noise, and epsilon "
    "speaks of what travels"
)
_JOINTLY = "Update and control variate are clipped together, so neither slips past the bound."
_REPLY = "which sites failed to answer"


def _client(name: str) -> list[Rule]:
    """What holds for every mechanism that protects a client as a whole."""
    return [
        Rule(name, "BatchNorm", "refused", _STATISTICS, _GROUP, "model.norm"),
        Rule(name, "BatchNorm kept at the site (FedBN)", "stated", _SLICE),
        Rule(name, "weighting by samples", "refused", _WEIGHT, _UNIFORM, "rounds.weighting"),
        Rule(name, "SCAFFOLD", "sound", _JOINTLY),
        Rule(name, "a personal slice (FedBN, FedRep)", "stated", _SLICE),
        Rule(name, "a feature shift", "sound"),
    ]


RULES: tuple[Rule, ...] = (
    *_client("central"),
    Rule("central", "a cohort", "sound", "Only a coin for each client amplifies as Poisson does."),
    Rule(
        "central", "a quorum", "stated", _REPLY, "The sum is divided by the expected cohort anyway."
    ),
    *_client("matrix"),
    Rule("matrix", "a cohort", "sound", "Groups of that size take turns; nothing is amplified."),
    Rule("matrix", "a quorum", "stated", _REPLY),
    *_client("local"),
    Rule("local", "a cohort", "sound", "Who takes part is known; nothing is amplified."),
    Rule("local", "a quorum", "stated", _REPLY),
    Rule(
        "example",
        "BatchNorm",
        "refused",
        "BatchNorm mixes the images of a batch, so no image has a gradient of its own to clip",
        "set model.norm = 'group' (the default)",
        "model.norm",
    ),
    Rule(
        "example",
        "BatchNorm kept at the site (FedBN)",
        "refused",
        "BatchNorm mixes the images of a batch, so no image has a gradient of its own to clip",
        "set model.norm = 'group' (the default); fedbn works with it",
        "model.norm",
    ),
    Rule(
        "example", "weighting by samples", "stated", "how many images a site has, which is public"
    ),
    Rule("example", "a cohort", "sound", "A site is accounted as if it took part in every round."),
    Rule("example", "a quorum", "stated", _REPLY),
    Rule("example", "SCAFFOLD", "sound", "Control variates are made from noised steps alone."),
    Rule(
        "example",
        "a personal slice (FedBN, FedRep)",
        "sound",
        "The slice that stays at the site is trained by the same noised steps.",
    ),
    Rule("example", "a feature shift", "sound"),
    *_client("distributed"),
    Rule("distributed", "a cohort", "sound", "Who takes part is known; nothing is amplified."),
    Rule("distributed", "a quorum", "stated", _REPLY),
    Rule(
        "distributed",
        "no secure aggregation",
        "refused",
        "each site adds only a part of the noise, which is not enough for its own update",
        "set secure.name = 'secagg', or privacy.name = 'local'",
        "privacy.name",
    ),
    *(
        Rule(name, "no secure aggregation", "sound", cause)
        for name, cause in {
            "central": "The coordinator sees each clipped update.",
            "matrix": "The coordinator sees each clipped update.",
            "local": "What the coordinator sees of a site is noised.",
            "example": "What the coordinator sees of a site is noised.",
        }.items()
    ),
    *(
        Rule(name, "secure aggregation", "sound", cause)
        for name, cause in {
            "central": "Noise is sized for the rounding too; single updates stay hidden. A run "
            "ends if the coins leave a round fewer than 3 sites; sampling = 'fixed' tosses none.",
            "matrix": "Noise is sized for the rounding too; single updates stay hidden.",
            "local": "The noised update is rounded and masked.",
            "example": "The update is rounded and masked.",
            "distributed": "The noise is added to the levels that are masked.",
        }.items()
    ),
    Rule(
        "secure aggregation",
        "BatchNorm",
        "refused",
        "running statistics move further than the range that updates are rounded in",
        _GROUP,
        "model.norm",
    ),
    Rule("secure aggregation", "BatchNorm kept at the site (FedBN)", "sound"),
    Rule("secure aggregation", "weighting by samples", "sound", "Weights are public, and capped."),
    Rule("secure aggregation", "a cohort", "sound", "Values get the bits that the cohort leaves."),
    Rule("secure aggregation", "a quorum", "sound", "Checked against what can be unmasked."),
    Rule("secure aggregation", "SCAFFOLD", "sound", "Control variates have a range of their own."),
    Rule("secure aggregation", "a personal slice (FedBN, FedRep)", "sound"),
    Rule("secure aggregation", "a feature shift", "sound"),
)


def met(program: Program) -> Iterator[Rule]:
    """The rules whose both features the program has."""
    has = {name for name, test in FEATURES.items() if test(program)}
    return (rule for rule in RULES if rule.a in has and rule.b in has)


def problems(program: Program) -> list[Problem]:
    """Of all that is refused, cause and cure; what has the same cure is said once."""
    found: dict[tuple[str, str], Problem] = {}
    for rule in met(program):
        if rule.verdict == "refused":
            problem = Problem(rule.where, f"under {_said(rule.a)}: {rule.cause}", rule.cure)
            found.setdefault((rule.where, rule.cure), problem)
    return list(found.values())


def _said(head: str) -> str:
    return head if head == "secure aggregation" else f"privacy '{head}'"


def remarks(program: Program) -> list[str]:
    """What epsilon does not cover, of this program."""
    return list(dict.fromkeys(rule.cause for rule in met(program) if rule.verdict == "stated"))


def page() -> str:
    """All rules as Markdown: the table, then the reason of each that is not plainly sound."""
    lines = [_PAGE, table()]
    for head in dict.fromkeys(rule.a for rule in RULES):
        lines.append(f"## {head}\n")
        for rule in (one for one in RULES if one.a == head):
            text = {
                "refused": f"{rule.cause}. Cure: {rule.cure}.",
                "stated": f"epsilon does not cover {rule.cause}."
                if not rule.cure
                else f"epsilon does not cover {rule.cause}. {rule.cure}",
                "sound": rule.cause,
            }[rule.verdict]
            lines.append(f"- **{rule.b}**: {rule.verdict}. {text}".rstrip())
        lines.append("")
    return "\n".join(lines)


_PAGE = """\
# What goes with what

<!-- Made from src/fedsight/program/rules.py by tools/make_reference.py: change that, not this. -->

`fedsight check` enforces this table. *Refused* is an error with its cure; *stated* is sound, with
a remark among what the report says epsilon does not cover.
"""


def table() -> str:
    """The rules as a page's table: a feature a row, a mechanism a column."""
    heads = list(dict.fromkeys(rule.a for rule in RULES))
    rows = list(dict.fromkeys(rule.b for rule in RULES))
    found = {(rule.a, rule.b): rule for rule in RULES}
    lines = [
        f"| | {' | '.join(f'`{head}`' for head in heads)} |",
        f"|{' --- |' * (len(heads) + 1)}",
    ]
    for row in rows:
        cells = [found[head, row].verdict if (head, row) in found else "" for head in heads]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
