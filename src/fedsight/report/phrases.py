"""What the files of a run say in English, in both languages: names of figures, tables and rules.

A run's files hold what tasks and mechanisms say of themselves, and errors of sites. What is not
known here may be a sentence of the catalogue; what is not known there either is quoted in English.
"""

from __future__ import annotations

import re
from functools import cache

from fedsight.language.english import from_english
from fedsight.language.message import Message, message
from fedsight.report.words import Words

FIGURES = (
    message("Accuracy"),
    message("Mean AUC"),
    message("Mean Dice"),
    message("Quadratic weighted kappa"),
    message("Verification AUC"),
    message("mAP"),
)
IN_SENTENCES = {
    "Accuracy": message("accuracy"),
    "Mean AUC": message("mean AUC"),
    "Mean Dice": message("mean Dice"),
    "Quadratic weighted kappa": message("quadratic weighted kappa"),
    "Verification AUC": message("verification AUC"),
}
CURVES = (
    message("ROC by label"),
    message("ROC by label, the {low} lowest and the {high} highest areas"),
    message("False positive rate"),
    message("True positive rate"),
    message("Precision over recall, IoU 0.50"),
    message("recall"),
    message("precision"),
    message("Verification of people unseen in training"),
    message("false accept rate"),
    message("true accept rate"),
)
TABLES = (
    message("By label (at a probability of one half)"),
    message("By class, over all test pixels"),
    message("By grade"),
    message("Found, missed and false by class, at a score of {score}"),
    message("Average precision by class"),
    message("mAP by class at each site"),
    message("At thresholds chosen on other people"),
    message("Degraded images at a false accept rate of {rate}"),
)
COLUMNS = (
    message("Label"), message("Class"), message("Grade"), message("Tested"), message("AUC"),
    message("from"), message("to"), message("± by bins"), message("Precision"), message("Recall"),
    message("F1"), message("Specificity"), message("Pixels"), message("Dice"), message("IoU"),
    message("Right"), message("At most one off"), message("Grades off, mean"),
    message("Objects"), message("Found"), message("Missed"), message("False"),
    message("AP, IoU 0.50"), message("wanted false accept rate"),
    message("reached on other people"), message("true accept rate"), message("95 % from"),
    message("threshold"), message("enrolled people found among strangers"),
    message("Compared with images that are"),
)  # fmt: skip
ANSWERS = (
    message("this model"),
    message("by chance"),
    message("same person"),
    message("two people"),
    message("nothing"),
    message("none"),
    message("as they are"),
    message("degraded in any of these ways, at one threshold"),
    message("reduced to 16 pixels at the shorter side, enlarged"),
    message("dark: a quarter of the light"),
    message("turned by 15 degrees"),
    message("a quarter covered"),
)
PRIVACY = (
    message("the coordinator, which sees each clipped update before the noise"),
    message(
        "the coordinator, which sees each clipped update before the noise, and the sites of a "
        "round, which are told how many take part"
    ),
    message("nobody but the site itself"),
    message("the site that holds the image"),
    message("the site that holds the text"),
    message(
        "secure aggregation: at most a share of secure.corrupt of the sites colludes with the "
        "coordinator"
    ),
    message("everything that one client's images ever change in the published models"),
    message("everything that one client's texts ever change in the published models"),
    message("everything that a site's images change in the sums that the coordinator sees"),
    message("everything that a site's texts change in the sums that the coordinator sees"),
    message("everything that one image changes in the updates that leave its site"),
    message("everything that one text changes in the updates that leave its site"),
    message("everything that a site's images change in the updates that leave it"),
    message("everything that a site's texts change in the updates that leave it"),
    message("how many images of each class a site declares"),
    message("how many texts of each class a site declares"),
    message("figures measured on the sites' own test images"),
    message("figures measured on the sites' own test texts"),
    message("which round was kept or ended training, by figures without noise"),
    message("whether a site answered, and when"),
    message("which sites failed to answer"),
    message("how many images a site has, which is public"),
    message(
        "the slice of the model that stays at its site: it is trained without noise, and epsilon "
        "covers what travels"
    ),
    message("the program's seed (a simulation)"),
    message("a secret"),
    message("poisson, rate {rate}"),
    message("fixed size, without replacement"),
    message("fixed groups in turn"),
    message("everyone (no amplification)"),
    message("a cohort that its sites know (no amplification)"),
)
ENVIRONMENT = (
    message("python"),
    message("platform"),
    message("processor"),
    message("cores"),
)
ALL = (
    *FIGURES, *CURVES, *TABLES, *COLUMNS, *ANSWERS, *PRIVACY, *ENVIRONMENT,
)  # fmt: skip
_FIELD = re.compile(r"\{(\w+)\}")


def figure_name(headline: str) -> Words:
    """The name of a main figure within a sentence."""
    return IN_SENTENCES.get(headline) or known_phrase(headline)


def answer_name(text: str) -> Words:
    """A class's name as it is, or what a task says where there is no class."""
    return next((phrase for phrase in ANSWERS if phrase.one == text), text)


def known_phrase(text: str) -> Words:
    """A text from a run's files as a message, if it is known; else as it is."""
    exact, patterns = _known()
    if text in exact:
        return exact[text]
    if len(text) > 1000:
        return text
    for pattern, phrase in patterns:
        if found := pattern.fullmatch(text):
            values = tuple((key, known_phrase(value)) for key, value in found.groupdict().items())
            return Message(phrase.one, values)
    return from_english(text)


@cache
def _known() -> tuple[dict[str, Message], list[tuple[re.Pattern[str], Message]]]:
    exact = {phrase.one: phrase for phrase in ALL if not _FIELD.search(phrase.one)}
    patterns = []
    for phrase in ALL:
        parts = _FIELD.split(phrase.one)
        if len(parts) > 1:
            whole = "".join(
                f"(?P<{part}>.+?)" if at % 2 else re.escape(part) for at, part in enumerate(parts)
            )
            patterns.append((re.compile(whole), phrase))
    return exact, patterns
