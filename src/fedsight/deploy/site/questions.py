"""What a site answers: each kind of question, and what stands between it and the images.

The site service refuses every other kind. The table in the threat model is made from this one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of question: what its answer may depend on, and what protects it."""

    depends: str  # of the site's own, besides the question; empty: nothing
    protected: str
    charged: str
    often: str


_NOT = Kind("", "", "", "any number of times")
KINDS: dict[str, Kind] = {
    "propose": Kind(
        "number of training images; number of images of each class and of corrupt ones "
        "(`contract.counts`); number of test images; preprocessing and classes, where the program "
        "does not state them; whether the images can be opened",
        "`contract.counts`; classes are not read from labels where the contract keeps images, "
        "counts or names back; a protected site's failure is always the same sentence",
        "an entry, no epsilon",
        "a hundred times `contract.attempts` in a run, in at most `contract.runs` runs",
    ),
    "train": Kind(
        "training images, and the memory of this run under this program",
        "clip, noise, codec and mask, as the program states and `contract.require` demands; a "
        "protected site tells no training loss, and a failure is a contribution of zeros",
        "the epsilon of its noise, before the work begins",
        "`contract.attempts` times a round; the latest question, asked again, gets the same bytes",
    ),
    "measure": Kind(
        "all test images, which the owner chooses, and personal parameters",
        "`contract.figures`: none, noise (none of models with parameters that were trained here "
        "without noise that the contract bounds), or only the number of images "
        "(`contract.test_images`), and no exact ones with `contract.counts = false`; a protected "
        "site's failure is an answer without figures, or zeros with noise",
        "the epsilon of the noise, before the work begins; exact figures an entry, no epsilon",
        "one model a round; `contract.evaluations` over all runs, where noised figures, and those "
        "with personal parameters, count each time they are computed; the latest question, asked "
        "again, gets the same bytes",
    ),
    "calibrate": Kind(
        "all test images, in three parts that follow from their names and the site's (of faces, "
        "from whom they show)",
        "`contract.figures`: exact sums, masked ones, noise on two histograms and on sums of "
        "confidence of all test images (of one of each patient; where an answer is more than one "
        "class, on what they lose at each level, and how many can lose anything; none of boxes and "
        "faces), or none. In a program with secure "
        "aggregation exact sums are masked too, and in one with noise nothing leaves without "
        "noise. None with both, of models with parameters that stay at the site, or, without "
        "noise, if any of the parts has fewer images, or groups, than `contract.test_images`; a "
        "protected site's failure is an answer without sums, zeros in a masked sum, or sums with "
        "noise by which all images are in the last bin, or lost; but in both of these an image "
        "that cannot be read or asked counts, alone, like one of which the model knows nothing",
        "the epsilon of the noise, before the work begins; without noise an entry, no epsilon",
        "one model and one temperature for a run of a program; each of its two answers (with "
        "noise, or where an answer is more than one class, one; with noise each time it is "
        "computed) is one of `contract.evaluations` over all runs; the latest "
        "question, asked again, gets the same bytes, and other keys mask the same sums",
    ),
    "deliver": Kind(
        "",
        "what the site makes of the model stays there, and is made by another process, which says "
        "nothing",
        "",
        "one model for a run; the same again any number of times",
    ),
    "adopt": Kind(
        "whether the images can be opened again",
        "a protected site's failure is always the same sentence",
        "",
        "any number of times",
    ),
    "fetch": Kind(
        "what `train` or `calibrate` released",
        "it is on the disk already",
        "",
        "any number of times",
    ),
    "wait": Kind("what was released; how long the work took", "", "", "any number of times"),
    "piece": _NOT,
    "probe": _NOT,
    "identify": _NOT,
    "advertise": _NOT,
    "share": _NOT,
    "confirm": _NOT,
    "agree": _NOT,
    "unmask": Kind(
        "",
        "it reveals shares of other sites' secrets, and of its own seed, for one certified list of "
        "sites",
        "an entry, no epsilon",
        "`contract.sums` lists of sites for a round of a program, `contract.lists` altogether; for "
        "sums over test images `contract.figures_lists` altogether, if `contract.figures` is "
        "`masked`",
    ),
}


def table() -> str:
    """All kinds as a Markdown table."""
    head = ("question", "may depend on", "protected by", "charged", "how often")
    rows = [head, ("---",) * len(head)]
    rows += [
        (f"`{name}`", one.depends or "nothing", one.protected or "–", one.charged or "–", one.often)
        for name, one in KINDS.items()
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
