"""The page of what can be combined with which protection, from `program/rules.py`."""

from __future__ import annotations

from fedsight.program import rules


def page() -> str:
    """All rules as Markdown: the table, then the reasons."""
    known = rules.rules()
    lines = [_PAGE, table()]
    for protection in dict.fromkeys(rule.protection for rule in known):
        lines.append(f"## {protection}\n")
        for rule in (one for one in known if one.protection == protection):
            more = f" {rule.cure}" if rule.cure else ""
            text = {
                "refused": f"{rule.cause}. Cure: {rule.cure}.",
                "stated": f"epsilon does not cover {rule.cause}.{more}",
                "sound": rule.cause,
            }[rule.verdict]
            lines.append(f"- **{rule.feature}**: {rule.verdict}. {text}".rstrip())
        lines.append("")
    return "\n".join(lines)


_PAGE = """\
# Compatibility of protections

<!-- Generated from src/fedsight/program/rules.py by tools/make_reference.py; do not edit. -->

`fedsight check` enforces this table. *Refused* is an error with its cure; *stated* is sound, with
a remark in the report about what epsilon does not cover.
"""


def table() -> str:
    """The rules as a table: one row per feature, one column per protection."""
    known = rules.rules()
    heads = list(dict.fromkeys(rule.protection for rule in known))
    found = {(rule.protection, rule.feature): rule for rule in known}
    lines = [
        f"| | {' | '.join(f'`{head}`' for head in heads)} |",
        f"|{' --- |' * (len(heads) + 1)}",
    ]
    for feature in rules.FEATURES:
        cells = [found[head, feature].verdict if (head, feature) in found else "" for head in heads]
        lines.append(f"| {feature} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
