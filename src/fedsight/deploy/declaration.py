"""What a site says of its images, and the federation that the coordinator puts together from it.

The coordinator sees no image. It knows how many a site has of each class, and how an image becomes
the network's input; from that it makes a `Federation` whose images are elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np

from fedsight.core.errors import ConfigError, DeployError, Problem
from fedsight.data.base import Dataset, Fit, Part, Preprocess, Source
from fedsight.data.partition import Groups
from fedsight.deploy.remote_images import Owners, RemoteImages, part
from fedsight.deploy.site.owner import Owner, lenient
from fedsight.program.federation import Federation, View, federate
from fedsight.program.program import Program

# The coordinator holds a few numbers for each image: of one site, and of all together.
MOST_IMAGES, MOST_TOGETHER = 1 << 24, 1 << 26
MOST_CLASSES = 1 << 16
MOST_PIXELS = 8192  # of a side
MOST_VALUES = 1 << 26  # of an image: the coordinator sends an empty one through the network


@dataclass(frozen=True)
class Declaration:
    """A site's images in numbers, for one program."""

    labels: tuple[int, ...]  # training images of each class
    test: int  # test images
    share: bool  # the images are this site's part of a sample that every site has
    classes: tuple[str, ...]
    preprocess: Preprocess
    skipped: int = 0  # images left out because they are corrupt

    @property
    def train(self) -> int:
        """Training images."""
        return sum(self.labels)

    def table(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def read_declaration(table: Any, site: str) -> Declaration:
    """A declaration that came over a line; DeployError names the site if it is not one."""
    try:
        fields: dict[str, Any] = dict(table["preprocess"])
        lists = {key: _listed(fields[key]) for key in ("mean", "std")}
        found = Declaration(
            _listed(table["labels"]),
            table["test"],
            table["share"],
            _listed(table["classes"]),
            Preprocess.of({**fields, **lists}),
            table["skipped"],
        )
        _check_plausible(found)
    except (KeyError, TypeError, ValueError) as error:
        raise DeployError(
            f"site '{site}' declared its images in a way that cannot be read: {str(error)[:200]}",
            "let it run the same FedSight version as the coordinator",
        ) from None
    return found


def _listed(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError("a list is none")
    return tuple(value)


def _check_plausible(found: Declaration) -> None:
    """ValueError for what the coordinator could not work with, or could not hold."""
    size = found.preprocess
    counts = (*found.labels, found.test, found.skipped)
    sides = (size.channels, size.height, size.width)
    if any(type(number) is not int for number in (*counts, *sides)) or min(counts) < 0:
        raise ValueError("a count is none")
    if not 1 <= found.train <= MOST_IMAGES or found.test > MOST_IMAGES:
        raise ValueError(f"between 1 and {MOST_IMAGES:,} images are plausible")
    if len(found.labels) > MOST_CLASSES:
        raise ValueError(f"at most {MOST_CLASSES:,} classes are plausible")
    names = [name for name in found.classes if type(name) is str]
    if not len(found.labels) == len(found.classes) == len(set(names)):
        raise ValueError("each class needs a name and a count")
    floats = (*size.mean, *size.std)
    fits = all(type(value) is float and math.isfinite(value) for value in floats)
    if not fits or not len(size.mean) == len(size.std) == size.channels or min(size.std) <= 0:
        raise ValueError("each channel needs a mean and a standard deviation")
    fits = all(1 <= side <= MOST_PIXELS for side in sides) and math.prod(sides) <= MOST_VALUES
    if not fits or size.fit not in get_args(Fit):
        raise ValueError("images cannot have that size")
    if type(found.share) is not bool:
        raise ValueError("it does not say whose images they are")


def weightless(program: Program) -> Program:
    """The program at a site: weights come with every order, no file of them need be there."""
    model = program.model.fresh()
    return replace(program, model=model)


def open_site(program: Program, owner: Owner, name: str) -> tuple[Federation, int]:
    """A site's federation for `program` and the site's number in it.

    The program says how images are prepared and what the classes are, the owner where they lie.
    An owner's images are either all this site's, or (`share`) a sample that every site has, of
    which the program's split gives each its part by name.
    """
    if owner.share:
        shared = federate(replace(weightless(program), data=owner.data))
        numbers = {shared.partition.name(site): site for site in range(len(shared.partition))}
        if name not in numbers:
            raise DeployError(
                f"the program's split has no site '{name}' but "
                f"{', '.join(list(numbers)[:3])}{', ...' if len(numbers) > 3 else ''}",
                "name the sites so, or give this site images of its own with --data",
            )
        return replace(shared, program=program), numbers[name]
    if program.shift.kind != "none":
        raise DeployError(
            f"the program simulates a {program.shift.kind} shift, but the images are real",
            "leave out [shift]: real sites differ by themselves",
        )
    dataset = merged(program.data, owner.data).open()
    everything = np.arange(len(dataset.test))
    mine = Groups([np.arange(len(dataset.train))], [name])
    test = replace(dataset.test, sites=[name] * len(everything))
    return Federation(program, replace(dataset, test=test), mine, (View(0, everything),)), 0


def merged(wanted: Source, own: Source) -> Source:
    """The owner's source with the program's word on everything that is not about where and how
    the files lie: sizes, channels, normalisation, classes, which images are held out."""
    fields = type(own).model_fields
    meant = {
        key: value
        for key in wanted.meaning()
        if key in fields and key not in LOCAL
        for value in [getattr(wanted, key)]
        if value is not None
    }
    values = {**{key: getattr(own, key) for key in fields}, **meant}
    return lenient(type(own).model_validate(values))


# What an owner decides for his own files, whatever the program says.
LOCAL = frozenset(
    {
        *("corrupt", "in_memory", "verify", "sites_in_path", "missing", "names"),
        # how a table or a set of files is laid out
        *("path_column", "label_column", "site_column", "split_column", "delimiter"),
        *("image_column", "train_part", "test_part", "first_label", "transpose"),
        *("train_images", "train_labels", "test_images", "test_labels"),
    }
)


def declare(federation: Federation, number: int, share: bool) -> Declaration:
    """What this site says of its images."""
    dataset, classes = federation.dataset, len(federation.dataset.classes)
    labels = dataset.train.labels[federation.partition.indices(number)]
    counts = np.bincount(labels, minlength=classes)
    return Declaration(
        tuple(counts.tolist()),
        len(dataset.test),
        share,
        dataset.classes,
        dataset.preprocess,
        len(dataset.skipped),
    )


def gather(program: Program, declared: Mapping[str, Declaration]) -> Federation:
    """The coordinator's federation of the sites in `declared`.

    Raises DeployError naming the site whose declaration does not agree with the others', and
    ConfigError for what the program asks of a population or a model that they do not have.
    """
    names = sorted(declared)
    first = declared[names[0]]
    for name in names:
        if error := _disagreement(name, declared[name], names[0], first):
            raise error
    _check_together(declared)
    if not first.share and program.shift.kind != "none":
        cause = "a simulated shift is for simulated sites"
        raise ConfigError([Problem("shift", cause, "leave out [shift]")])
    classes = len(first.classes)
    labels = [np.repeat(np.arange(classes), declared[name].labels) for name in names]
    offsets = np.cumsum([0, *(len(own) for own in labels)])
    partition = Groups([np.arange(a, b) for a, b in itertools.pairwise(offsets)], names)
    train = Part(RemoteImages(int(offsets[-1])), np.concatenate(labels))
    dataset = Dataset(train, _test(names, declared), first.classes, first.preprocess)
    if problems := program.rounds.check(len(names)):
        raise ConfigError(problems)
    federation = Federation(program, dataset, partition, ())
    network = federation.network()
    if problems := program.check_network(network):
        raise ConfigError(problems)
    differ = program.differs(network) or program.shift.kind != "none"
    views = _views(dataset, names, differ)
    if not views:
        cause = "no site has test images, so nothing could be measured"
        cure = "hold some out at a site at least, or mark them (docs/how-to/own-data.md)"
        raise ConfigError([Problem("data", cause, cure)])
    return replace(federation, views=views)


def deviants(
    found: Mapping[str, Declaration], roster: Mapping[str, Declaration]
) -> dict[str, DeployError]:
    """The sites in `found` that do not agree with those that take part already, and why.

    Where nobody does yet, with most of `found`; of two camps of one size, with the alphabetically
    first site.
    """
    everybody = {**found, **roster}
    names = sorted(roster or found)
    if not names:
        return {}

    def against(firm: str) -> dict[str, DeployError]:
        errors = {
            name: _disagreement(name, found[name], firm, everybody[firm]) for name in sorted(found)
        }
        return {name: error for name, error in errors.items() if error is not None}

    return min((against(name) for name in names), key=len)


def _disagreement(
    name: str, found: Declaration, other: str, first: Declaration
) -> DeployError | None:
    if found.share != first.share:
        cause = "has images of its own, and another a part of a sample"
        cure = "let all sites have their own images, or all a part of the same sample"
    elif found.classes != first.classes:
        cause = (
            f"has the classes {', '.join(found.classes[:5])}, not {', '.join(first.classes[:5])}"
        )
        cure = "name all classes in data.classes of the config"
    elif found.preprocess != first.preprocess:
        cause = f"prepares images as {found.preprocess}, not as {first.preprocess}"
        cure = "set data.size, data.channels, data.mean and data.std in the config"
    else:
        return None
    return DeployError(f"site '{name}' {cause} (as site '{other}' has)", cure)


def _test(names: list[str], declared: Mapping[str, Declaration]) -> Part:
    if declared[names[0]].share:  # one test part that every site has
        count = declared[names[0]].test
        return Part(RemoteImages(count), np.zeros(count, np.int64))
    return part({name: declared[name].test for name in names})


def _check_together(declared: Mapping[str, Declaration]) -> None:
    sizes = {
        name: found.train + (0 if found.share else found.test) for name, found in declared.items()
    }
    if sum(sizes.values()) > MOST_TOGETHER:
        name = max(sorted(sizes), key=sizes.__getitem__)
        raise DeployError(
            f"the sites declare {sum(sizes.values()):,} images, more than {MOST_TOGETHER:,}: most "
            f"of them site '{name}', {sizes[name]:,}",
            "shut out a site that made its number up, or let sites take part with fewer images",
        )


def _views(dataset: Dataset, names: list[str], differ: bool) -> tuple[View, ...]:
    """What is tested; `differ`: sites have models of their own or see the world differently."""
    if isinstance(dataset.test.sites, Owners):
        return dataset.test.sites.views()
    everything = np.arange(len(dataset.test))
    if differ:
        return tuple(View(number, everything) for number in range(len(names)))
    return (View(None, everything),)
