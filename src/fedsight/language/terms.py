"""Words that the files of runs hold, and sentences that rooms put together from pieces.

They are in the catalogue although no call has them as they are; see `language/english.py`.
"""

from __future__ import annotations

TERMS = (
    "client",
    "example",
    "image",
    "images",
    "text",
    "texts",
    # What Typer says of arguments that it cannot take.
    "'{value}' is not one of {choices}.",
    "Argument {name} takes {n} values.",
    "Got unexpected extra argument(s) ({arguments})",
    "Invalid value for {option}: {why}",
    "Missing argument '{name}'.",
    "Missing command.",
    "Missing option '{name}'.",
    "No such command '{name}'.",
    "No such command '{name}'. Did you mean {suggestions}?",
    "No such option: {option}",
    "No such option: {option} (Possible options: {options})",
    "No such option: {option} Did you mean {suggestions}?",
    "Option '{option}' does not take a value.",
    "Option '{option}' requires an argument.",
    "Show this message and exit.",
    "{value} is not a valid integer.",
    "{value} is not a valid float.",
    "{value} is not in the range {range}.",
    # How large the parts of a data set are (data/base.py).
    "{train} training {modalities} and {test} test {modalities}",
    "{train} training {modalities}, {validation} validation {modalities} and {test} test "
    "{modalities}",
)
