"""What sites declare about their images, and the federation that the coordinator builds from it.

The coordinator never sees an image. A data declaration tells it how many images of each class a
site has, and how an image becomes the network's input. From the declarations it builds a
`Federation` of remote images.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

import numpy as np

from fedsight.core.errors import ConfigError, DataError, DeployError, Problem
from fedsight.core.text import MAX_MESSAGE, is_printable, printable
from fedsight.data.base import MAX_CHANNELS, PROGRAM_KEYS, Dataset, Part, Preprocess, Source
from fedsight.data.by_site import Classes
from fedsight.data.labelled import unlabelled
from fedsight.data.partition import Groups
from fedsight.data.single_draws import drawn_singly
from fedsight.deploy.remote_images import ImageSites, RemoteImages, remote_test_part
from fedsight.deploy.site.owner import OwnerSettings, allow_missing_classes
from fedsight.engines.remote.messages import read_reason
from fedsight.evaluation.trust.units import group_count
from fedsight.governance.contract import Release
from fedsight.models.published import PUBLISHED
from fedsight.program import auto_codec, labelling, looks, public
from fedsight.program.federation import Federation, federate, of_source
from fedsight.program.fitting import group_problems, integer_problems, lone_problems, trainable
from fedsight.program.program import Program
from fedsight.program.views import View

# The coordinator keeps a few numbers for each image, so their count is limited.
MAX_SITE_IMAGES = 1 << 24
MAX_TOTAL_IMAGES = 1 << 26  # of all sites together
MAX_CLASSES = 1 << 16
MAX_CLASS_NAME = 200  # characters
MAX_SHOWN = 400  # characters of a site's preprocessing in a message


@dataclass(frozen=True)
class Declaration:
    """A site's images in numbers, as one program uses them."""

    labels: tuple[int, ...]  # number of training images of each class; empty: it is not told
    test: int  # number of test images
    share: bool  # whether the images are this site's share of a sample that every site has
    classes: tuple[str, ...]
    preprocess: Preprocess
    skipped: int = 0  # number of corrupt images that are left out
    total: int | None = None  # number of training images, where that of each class is not told
    unlabelled: tuple[int, ...] = ()  # the classes that the site does not label, as its owner says
    # How figures leave the site, and why not; this may change during a run.
    figures: Release = field(default="exact", compare=False)
    withheld: str = field(default="", compare=False)
    # how many groups, such as patients, the test images are of; None: nobody knows what belongs
    # together. Runs of earlier versions have not been told.
    groups: int | None = field(default=None, compare=False)

    @property
    def train(self) -> int:
        """Number of training images."""
        return sum(self.labels) if self.total is None else self.total

    def table(self) -> dict[str, Any]:
        """The declaration in plain values."""
        return asdict(self)


def read_declaration(table: Any, site: str) -> Declaration:
    """Read a declaration that a site sent; DeployError names the site if it is invalid."""
    try:
        fields: dict[str, Any] = dict(table["preprocess"])
        lists = {key: _as_tuple(fields[key], MAX_CHANNELS) for key in ("mean", "std")}
        found = Declaration(
            _as_tuple(table["labels"], MAX_CLASSES),
            table["test"],
            table["share"],
            _as_tuple(table["classes"], MAX_CLASSES),
            Preprocess.of({**fields, **lists}),
            table["skipped"],
            table["total"],
            _as_tuple(table["unlabelled"], MAX_CLASSES),
            table["figures"],
            table["withheld"],
            table.get("groups"),
        )
        _check_plausible(found)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DeployError(
            f"site '{site}' sent an invalid data declaration: {printable(error, 200)}",
            "run the same FedSight version at the site and at the coordinator",
        ) from None
    return found


def _as_tuple(value: Any, most: int) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) > most:
        raise TypeError(f"expected a list of at most {most:,}")
    return tuple(value)


def _check_plausible(found: Declaration) -> None:
    """Raise ValueError if the coordinator could not use the declaration, or not hold it."""
    told = tuple(one for one in (found.total, found.groups) if one is not None)
    counts = (*found.labels, *told, found.test, found.skipped)
    if any(type(number) is not int for number in counts) or min(counts) < 0:
        raise ValueError("expected counts as whole numbers of at least 0")
    if not 1 <= found.train <= MAX_SITE_IMAGES or max(counts) > MAX_SITE_IMAGES:
        raise ValueError(f"expected between 1 and {MAX_SITE_IMAGES:,} images")
    if found.groups is not None and not bool(found.test) <= found.groups <= found.test:
        raise ValueError("expected as many groups of test images as there are images, at most")
    names = [name for name in found.classes if type(name) is str and _is_class_name(name)]
    expected = len(found.classes) if found.total is None else 0
    if len(found.labels) != expected or len(found.classes) != len(set(names)):
        cause = "each class needs a printable name of its own and a count, or all one count"
        raise ValueError(cause)
    hidden = found.unlabelled
    if any(type(label) is not int for label in hidden) or len(set(hidden)) < len(hidden):
        raise ValueError("expected each class that is not labelled once, as a whole number")
    if any(not 0 <= label < len(found.classes) for label in hidden):
        raise ValueError("a class that is not labelled is not one of the classes")
    if not found.preprocess.mean:
        raise ValueError("each channel needs a mean and a positive standard deviation")
    if type(found.share) is not bool:
        raise ValueError("expected `share` to be true or false")
    if found.figures not in get_args(Release):
        raise ValueError("expected `figures` to be none, exact, noised or masked")
    if type(found.withheld) is not str or found.withheld != read_reason(found.withheld):
        raise ValueError("expected `withheld` to be a short text")


def _is_class_name(name: str) -> bool:
    return len(name) <= MAX_CLASS_NAME and is_printable(name)


def check_classes(classes: Sequence[str]) -> None:
    """Raise DataError unless other machines accept these names of classes."""
    for name in classes:
        if not _is_class_name(name):
            raise DataError(
                f"'{printable(name, 40)}' cannot be the name of a class: use at most "
                f"{MAX_CLASS_NAME} characters, all of them printable",
                "rename the class in the data or its folder",
            )
    if len(classes) > MAX_CLASSES:
        raise DataError(f"there are more than {MAX_CLASSES:,} classes", "merge some of them")


def without_weights(program: Program) -> Program:
    """The program without its file of weights, which sites do not have: orders bring weights."""
    return replace(program, model=program.model.fresh())


def as_built_here(program: Program) -> Program:
    """The program with its published weights if they have been fetched here, else without weights.

    They are four files that this package knows by name and hash, in this machine's own cache: a
    coordinator can name no other. One that is damaged counts as not fetched.
    """
    model = program.model
    files = [PUBLISHED.get(name) for name in model.needs()]
    here = model.rebuildable and all(one is not None and one.is_here for one in files)
    return program if here else without_weights(program)


def open_site(program: Program, owner: OwnerSettings, name: str) -> tuple[Federation, int]:
    """Open a site's images for `program`; returns the federation and the site's number in it.

    The federation has one test view, of all test images as this site sees them. The program decides
    how images are prepared and what the classes are, the owner where the files are and which of
    them are tested on. The images all belong to this site, or (`owner.share`) they are a sample
    that every site has, of which the program's split gives each site its share by name.
    """
    if found := public.elsewhere(program, own=not owner.share):  # no file that a coordinator names
        raise ConfigError(found)
    if owner.share:
        own = replace(without_weights(program), algorithm=program.algorithm.fresh())
        shared = federate(replace(own, data=owner.data))
        numbers = {shared.partition.name(site): site for site in range(len(shared.partition))}
        if name not in numbers:
            raise DeployError(
                f"the program's split has no site '{name}'; its sites are "
                f"{', '.join(list(numbers)[:3])}{', ...' if len(numbers) > 3 else ''}",
                "rename the site, or give it images of its own with --data",
            )
        seen_by = numbers[name] if shared.differ else None
        view = View(seen_by, np.arange(len(shared.dataset.test)))
        return replace(shared.testing((view,)), program=program), numbers[name]
    if program.shift.kind != "none":
        raise DeployError(
            f"the program simulates a {program.shift.kind} shift, but the images are real",
            "remove [shift]: real sites differ already",
        )
    source = merge_sources(program.data, owner.data)
    with drawn_singly(owner.contract.hides_images):
        dataset = source.open()
    if problems := program.task.check(dataset):
        raise DataError(problems[0].cause, problems[0].cure)
    dataset = of_source(dataset, source)
    all_test = np.arange(len(dataset.test))
    partition = Groups([np.arange(len(dataset.train))], [name])
    test = replace(dataset.test, sites=[name] * len(all_test))
    told = replace(dataset, test=test)
    problems = labelling.site_problems(program, told, partition)
    problems += looks.opened_problems(program, told, partition)
    if not problems and labelling.hidden(dataset, partition) is not None:
        problems = _unscored(program, owner)
    if problems:
        raise DataError(f"{problems[0].where}: {problems[0].cause}", problems[0].cure)
    dataset = public.shared(program, replace(dataset, test=test))
    return Federation(program, dataset, partition, (View(0, all_test),)), 0


def _unscored(program: Program, owner: OwnerSettings) -> list[Problem]:
    """Noised figures that would count a class that was not looked for as one that is not there."""
    if owner.contract.release != "noised" or not program.task.scores_all:
        return []
    cause = "noised figures of this task need every class labelled in every test image"
    return [Problem("data.labelled", cause, "set contract.figures = 'none', or label all classes")]


def merge_sources(program: Source, owner: Source) -> Source:
    """The owner's source, with the program's settings of `PROGRAM_KEYS`."""
    fields = type(owner).model_fields
    shared = {
        key: value
        for key in program.meaning()
        if key in fields and key in PROGRAM_KEYS
        for value in [getattr(program, key)]
        if value is not None
    }
    values = {**{key: getattr(owner, key) for key in fields}, **shared}
    return allow_missing_classes(type(owner).model_validate(values))


def declare(federation: Federation, number: int, share: bool, counts: bool = True) -> Declaration:
    """This site's data declaration.

    Without `counts` it tells how many training images there are, and not how many of each class or
    how many are corrupt.
    """
    dataset, classes = federation.dataset, len(federation.dataset.classes)
    labels = dataset.train.labels[federation.partition.indices(number)]
    by_class = np.bincount(labels, minlength=classes)
    return Declaration(
        tuple(by_class.tolist()) if counts else (),
        len(dataset.test),
        share,
        dataset.classes,
        dataset.preprocess,
        dataset.corrupt if counts else 0,
        None if counts else len(labels),
        tuple(unlabelled(dataset.labelled, federation.partition.name(number), dataset.classes)),
        groups=group_count(dataset.test),
    )


def gather(program: Program, declared: Mapping[str, Declaration]) -> Federation:
    """The coordinator's federation of the sites in `declared`.

    Raises DeployError, naming the site, if a declaration does not agree with the others, and
    ConfigError if the program does not suit the number of sites or the network.
    """
    names = sorted(declared)
    first = declared[names[0]]
    for name in names:
        if error := _disagreement(name, declared[name], names[0], first):
            raise error
    if error := _excess(declared):
        raise error
    if not first.share and program.shift.kind != "none":
        cause = "a shift can be simulated only at simulated sites"
        raise ConfigError([Problem("shift", cause, "remove [shift]")])
    classes = len(first.classes)
    untold = tuple(name for name in names if declared[name].total is not None)
    labels = [
        # Class numbers of a site that does not tell them are not used (`Dataset.untold`).
        np.zeros(declared[name].train, np.int64)
        if name in untold
        else np.repeat(np.arange(classes), declared[name].labels)
        for name in names
    ]
    offsets = np.cumsum([0, *(len(own) for own in labels)])
    partition = Groups([np.arange(a, b) for a, b in itertools.pairwise(offsets)], names)
    train = Part(RemoteImages(int(offsets[-1])), np.concatenate(labels))
    dataset = Dataset(train, _test(names, declared), first.classes, first.preprocess, untold=untold)
    dataset = public.shared(program, replace(dataset, labelled=_labelled(declared)))
    if problems := labelling.declared_problems(program, dataset, partition):
        raise ConfigError(problems)
    if problems := program.rounds.check(len(names)):
        raise ConfigError(problems)
    federation = Federation(program, trainable(program, dataset, partition), partition, ())
    if problems := program.train.check_images(first.preprocess.channels):
        raise ConfigError(problems)
    if problems := program.check_network(federation.network):
        raise ConfigError(problems)
    # With a quorum the run goes on without a site that a group names and that has not come.
    complete = program.rounds.quorum is None
    if problems := group_problems(federation, complete) or lone_problems(federation):
        raise ConfigError(problems)
    if problems := [*program.algorithm.check_data(dataset), *integer_problems(federation)]:
        raise ConfigError(problems)
    if not any(one.test for one in declared.values()):
        cause = "no site has test images, so nothing can be measured"
        cure = "hold some out at one site at least, or mark them (docs/how-to/own-data.md)"
        raise ConfigError([Problem("data", cause, cure)])
    return auto_codec.settled(federation.testing(_views(federation, declared)))


def _labelled(declared: Mapping[str, Declaration]) -> Classes | None:
    """The classes that were labelled at the sites that do not label all; None: all label all."""
    found = tuple(
        (name, tuple(c for label, c in enumerate(one.classes) if label not in one.unlabelled))
        for name, one in sorted(declared.items())
        if one.unlabelled
    )
    return found or None


def withheld(declared: Mapping[str, Declaration]) -> dict[str, str]:
    """Why sites with test images have declared that no figures of theirs alone leave, by site."""
    return {
        name: one.withheld or "the site releases no figures"
        for name, one in declared.items()
        if one.test and one.figures in ("none", "masked")
    }


def grouped_tests(declared: Mapping[str, Declaration]) -> dict[str, int]:
    """The numbers of groups that test images are of, by site: of those that know."""
    return {name: one.groups for name, one in declared.items() if one.groups is not None}


def masked_tests(declared: Mapping[str, Declaration]) -> dict[str, int]:
    """The numbers of test images of sites that may send sums over these under masks, by site; not
    of a sample that all sites have."""
    return {
        name: one.test
        for name, one in declared.items()
        if one.test and not one.share and one.figures in ("exact", "masked")
    }


def disagreeing_sites(
    found: Mapping[str, Declaration], roster: Mapping[str, Declaration]
) -> dict[str, DeployError]:
    """The sites in `found` whose declarations do not agree with the roster's, and why.

    If the roster is empty, they are compared with the majority of `found`; between two groups of
    equal size, with the group of the alphabetically first site.
    """
    declared = {**found, **roster}
    names = sorted(roster or found)
    if not names:
        return {}

    def disagreeing_with(reference: str) -> dict[str, DeployError]:
        errors = {
            name: _disagreement(name, found[name], reference, declared[reference])
            for name in sorted(found)
        }
        return {name: error for name, error in errors.items() if error is not None}

    return min((disagreeing_with(name) for name in names), key=len)


def lone_sites(program: Program, found: Mapping[str, Declaration]) -> dict[str, DeployError]:
    """The sites in `found` that declare one image, on which the network cannot train; and why.

    They agree with the others: no network is built for a size that one site alone declares.
    Whatever fails is the site's failure.
    """
    errors = {}
    for name, one in found.items():
        if one.train > 1:
            continue
        alone, partition = RemoteImages(1), Groups([np.arange(1)], [name])
        train = Part(alone, np.zeros(1, np.int64))
        dataset = Dataset(train, train, one.classes, one.preprocess)
        try:
            for problem in lone_problems(Federation(program, dataset, partition, ())):
                errors[name] = DeployError(problem.cause, problem.cure)
        except Exception as error:
            why = printable(error, MAX_MESSAGE)
            errors[name] = DeployError(
                f"the network cannot be built for what site '{name}' declares: {why}",
                "leave the site out, or give it more images",
            )
    return errors


def mislabelled_sites(program: Program, found: Mapping[str, Declaration]) -> dict[str, DeployError]:
    """The sites in `found` that do not label classes which this program needs labelled; and why.

    Each is looked at alone. That a class is labelled at no site is nobody's fault: others that
    label it may be missing.
    """
    errors = {}
    for name, one in found.items():
        train, partition = (
            Part(RemoteImages(1), np.zeros(1, np.int64)),
            Groups([np.arange(1)], [name]),
        )
        dataset = Dataset(
            train, train, one.classes, one.preprocess, labelled=_labelled({name: one})
        )
        for problem in labelling.stated_problems(program, dataset, partition)[:1]:
            why, cure = problem.cause, problem.cure
            cause = f"site '{name}' declares classes that it does not label: {why}"
            errors[name] = DeployError(cause, cure)
    return errors


def oversized_sites(
    found: Mapping[str, Declaration], roster: Mapping[str, Declaration]
) -> dict[str, DeployError]:
    """The sites in `found` that declare the most images, until the coordinator can hold those of
    all others and of the roster; and why."""
    held, errors = {**found, **roster}, dict[str, DeployError]()
    while (error := _excess(held)) and (new := sorted(found.keys() & held.keys() - roster.keys())):
        most = max(new, key=lambda name: _images(held[name]))
        errors[most] = error
        del held[most]
    return errors


def _disagreement(
    name: str, found: Declaration, other: str, first: Declaration
) -> DeployError | None:
    if found.share != first.share:
        owns, shares = "has images of its own", "has a share of a sample"
        cause = f"{shares if found.share else owns}, and site '{other}' "
        cause += shares if first.share else owns
        cure = "give all sites images of their own, or all a share of the same sample"
        return DeployError(f"site '{name}' {cause}", cure)
    if found.classes != first.classes:
        ours, theirs = (_first_classes(one) for one in (found, first))
        cause = f"has the classes {ours}, and site '{other}' has {theirs}"
        cure = "name all classes in data.classes of the config"
    elif found.preprocess != first.preprocess:
        # The template of a histogram alone may have thousands of numbers.
        ours, theirs = (printable(one.preprocess, MAX_SHOWN) for one in (found, first))
        cause = f"prepares images as {ours}, and site '{other}' as {theirs}"
        cure = "set data.size, data.channels, data.mean and data.std in the config"
    else:
        return None
    return DeployError(f"site '{name}' {cause}", cure)


def _first_classes(declared: Declaration) -> str:
    return ", ".join(printable(name, 40) for name in declared.classes[:5])


def _test(names: list[str], declared: Mapping[str, Declaration]) -> Part:
    if declared[names[0]].share:  # every site has the same test part
        count = declared[names[0]].test
        return Part(RemoteImages(count), np.zeros(count, np.int64))
    return remote_test_part({name: declared[name].test for name in names})


def _images(declared: Declaration) -> int:
    """The images that the coordinator keeps numbers of."""
    return declared.train + (0 if declared.share else declared.test)


def _excess(declared: Mapping[str, Declaration]) -> DeployError | None:
    """What is wrong if these sites declare more images than the coordinator can hold."""
    sizes = {name: _images(found) for name, found in declared.items()}
    if sum(sizes.values()) <= MAX_TOTAL_IMAGES:
        return None
    name = max(sorted(sizes), key=sizes.__getitem__)
    return DeployError(
        f"the sites declare {sum(sizes.values()):,} images, more than {MAX_TOTAL_IMAGES:,}; "
        f"site '{name}' declares the most, {sizes[name]:,}",
        "revoke a site that declares a false number, or use fewer images at the sites",
    )


def _views(federation: Federation, declared: Mapping[str, Declaration]) -> tuple[View, ...]:
    """The views to test on, one for each site that measures; none without any figures."""
    test, silent = federation.dataset.test, withheld(declared)
    partition = federation.partition
    if isinstance(test.sites, ImageSites):
        views = test.sites.views()
    else:
        all_test = np.arange(len(test))
        if not federation.differ:  # any site can measure
            return (View(None, all_test),) if len(silent) < len(partition) else ()
        views = tuple(View(number, all_test) for number in range(len(partition)))
    return tuple(view for view in views if partition.name(view.site or 0) not in silent)
