"""`fedsight data`: what a source holds, and how a split divides it among sites."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsight.cli.fetch import get_command
from fedsight.cli.output import echo, reasons
from fedsight.language.english import from_english
from fedsight.language.message import Text, message, plural

if TYPE_CHECKING:
    from fedsight.cli.tables import PrintableTable
    from fedsight.core.settings import Settings
    from fedsight.data.base import Dataset, Source
    from fedsight.data.duplicates.counts import Duplicates
    from fedsight.data.partition import Partition, Split

app = typer.Typer(no_args_is_help=True, help="Fetch data sets, and inspect sources and splits.")
app.command("get")(get_command)

_SHOWN = 30  # rows of a table
_DRAWN = 1000  # sites in a plot

Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
]


@app.command("list")
def list_command() -> None:
    """List the data sources and the splits, with their settings.

    Example: fedsight data list
    """
    from fedsight.cli.tables import make_table, show
    from fedsight.data.base import sources
    from fedsight.data.partition import splits

    tables = (
        (sources, make_table("data source", "about", "settings", whole=("data source",), least=4)),
        (splits, make_table("split", "about", "settings", whole=("split",), least=4)),
    )
    for registry, table in tables:
        for name in registry.names():
            facts = dict(registry.facts(name))
            lines = [from_english(facts.pop("about")), *map(_fact, facts.items())]
            about = "\n".join(map(str, lines))
            table.add_row(name, about, _settings(registry.get(name)), end_section=True)
        show(table, markup=False)


@app.command("inspect")
def inspect_command(
    source: Annotated[str, typer.Argument(help="A source's name, a file or folder, or a config.")],
    options: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Open a source and show what it holds: parts, classes, sites, and what was passed over.

    Example: fedsight data inspect my_images/ --set size=64 --set sites_in_path=true
    """
    from fedsight.cli.tables import show
    from fedsight.runs.phases import shown

    with shown():
        opened = _source(source, options or []).open()
    if as_json:
        echo(json.dumps(_json(opened), indent=2, ensure_ascii=False))
        return
    show(_summary(opened), markup=False)
    show(_class_table(opened), markup=False)
    for note in opened.notes:
        echo(from_english(note))
    _say_duplicates(opened)
    for path in opened.skipped[:_SHOWN]:
        echo(message("skipped, corrupt: {path}", path=path))
    if len(opened.skipped) > _SHOWN:
        echo(message("skipped, corrupt: {n} more", n=len(opened.skipped) - _SHOWN))


@app.command("split")
def split_command(
    source: Annotated[str, typer.Argument(help="A config, a source's name, a file or folder.")],
    split: Annotated[
        str | None, typer.Option("--split", help="The split; without it the config's, or iid.")
    ] = None,
    sites: Annotated[int | None, typer.Option("--sites", min=1, help="How many sites.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="The seed; without it the config's, or 0.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of the split (alpha=0.3) or of the source (data.size=64).",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Where to save a plot (.svg, .png, .pdf).")
    ] = None,
) -> None:
    """Show how a split spreads the labels over the sites, as a table and a plot.

    Example: fedsight data split fashion-mnist-12k --split dirichlet --set alpha=0.3 --picture a.svg
    """
    from fedsight.cli.tables import show
    from fedsight.data.partition import label_counts
    from fedsight.runs.phases import shown

    of_data = [option[5:] for option in options or [] if option.startswith("data.")]
    of_split = [
        option.removeprefix("split.") for option in options or [] if not option.startswith("data.")
    ]
    if sites is not None:
        of_split.append(f"sites={sites}")
    chosen, spread, its_seed = _source_and_split(source, split, of_data, of_split)
    with shown():
        opened = chosen.open()
    used = its_seed if seed is None else seed
    partition = spread.divide(opened.train, len(opened.classes), used)
    counts = label_counts(
        partition, opened.train.labels, len(opened.classes), min(len(partition), _DRAWN)
    )
    show(_split_table(partition, counts, opened.classes), markup=False)
    if len(counts) > _SHOWN:
        echo(message("... and {n} more sites", n=len(partition) - _SHOWN))
    echo(_spread(opened, partition, counts))
    if picture is not None:
        from fedsight.data.split_plot import draw_split

        names = [partition.name(site) for site in range(len(counts))]
        title = f"{opened.facts.get('title', source)}: {spread.registered}, seed {used}"
        draw_split(counts, names, opened.classes, title, picture)
        echo(message("Wrote {path}", path=picture))


def _fact(fact: tuple[str, str]) -> Text:
    key, value = map(from_english, fact)
    return message("{key}: {value}", key=key, value=value)


def _spread(opened: Dataset, partition: Partition, counts: Any) -> Text:
    """How much the sites have; of the first ones if there are very many."""
    totals = counts.sum(axis=1)
    has = message(
        "{least} to {most} {modalities} (median {median}), {classes:.1f} of {all} classes per site",
        least=totals.min(),
        most=totals.max(),
        modalities=from_english(opened.preprocess.modalities),
        median=sorted(totals)[len(totals) // 2],
        classes=(counts > 0).sum(axis=1).mean(),
        all=len(opened.classes),
    )
    if len(counts) == len(partition):
        return plural("{n} site, {has}", "{n} sites, {has}", len(partition), has=has)
    return message(
        "{n} sites; of the first {first}: {has}", n=len(partition), first=len(counts), has=has
    )


def _source(word: str, options: Sequence[str]) -> Source:
    if word.endswith(".toml"):
        from fedsight.program.config import load

        sets = [option if option.startswith("data.") else f"data.{option}" for option in options]
        source: Source = load(Path(word), sets)[0].data
        return source
    from fedsight.program.locate import find_source

    return find_source(word, [option.removeprefix("data.") for option in options])


def _source_and_split(
    word: str, split: str | None, of_data: Sequence[str], of_split: Sequence[str]
) -> tuple[Source, Split, int]:
    """The source, the split and the seed that the arguments ask for."""
    from fedsight.data.partition import splits
    from fedsight.program.locate import build, find_source, parse

    if word.endswith(".toml"):
        from fedsight.program.config import load

        sets = [f"data.{option}" for option in of_data]
        if split is None:
            sets += [f"split.{option}" for option in of_split]
        program = load(Path(word), sets)[0]
        chosen, seed = program.data, program.seed
        if split is None:
            return chosen, program.split, program.split_seed
    else:
        chosen, seed = find_source(word, of_data), 0
    made = build(splits, split or "iid", parse(of_split))
    return chosen, made, seed if made.seed is None else made.seed


def _settings(cls: type[Settings]) -> str:
    """The settings of a registered class, a line each, those that must be given first."""
    needed = [
        f"{name} {message('(required)')}" for name, f in cls.model_fields.items() if f.is_required()
    ]
    given = [
        f"{name} = {_toml(field.default)}"
        for name, field in cls.model_fields.items()
        if not field.is_required()
    ]
    return "\n".join([*needed, *given])


def _toml(value: Any) -> str:
    if value is None:
        return str(message("(not set)"))
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _summary(opened: Dataset) -> PrintableTable:
    from fedsight.cli.tables import make_table

    table = make_table("what", "value", whole=("what",), least=4)
    for key, value in opened.facts.items():
        table.add_row(from_english(key), str(value))
    size = opened.preprocess
    seen = from_english(size.modalities)
    table.add_row(message("training {modalities}", modalities=seen), f"{len(opened.train):,}")
    if opened.validation is not None:
        aside = f"{len(opened.validation):,}"
        table.add_row(message("validation {modalities}", modalities=seen), aside)
    table.add_row(message("test {modalities}", modalities=seen), f"{len(opened.test):,}")
    if opened.train.sites is not None:
        table.add_row(message("sites"), f"{len(set(opened.train.sites))}")
    if size.modality == "text":
        table.add_row(message("length"), message("{n} words", n=size.width))
    else:
        _add_pixels(table, opened)
    corrupt = message("{n} corrupt {modalities}", n=len(opened.skipped), modalities=seen)
    table.add_row(message("skipped"), corrupt)
    if opened.passed_over:
        table.add_row(message("passed over"), reasons(opened.passed_over))
    return table


def _json(opened: Dataset) -> dict[str, Any]:
    """What `data inspect --json` prints: numbers of images, by part, class, site and reason."""
    from fedsight.data.groups import group_counts

    aside, sites = opened.validation, opened.train.sites
    return {
        "train": len(opened.train),
        "validation": 0 if aside is None else len(aside),
        "test": len(opened.test),
        "classes": list(opened.classes),
        "train_by_class": opened.train.counts(len(opened.classes)).tolist(),
        "test_by_class": opened.test.counts(len(opened.classes)).tolist(),
        "sites": None if sites is None else dict(Counter(sites)),
        "skipped": list(opened.skipped),
        "passed_over": dict(opened.passed_over),
        "duplicates": None if (found := _duplicates(opened)) is None else found.table(),
        "groups": None if (groups := group_counts(opened)) is None else asdict(groups),
        "notes": list(opened.notes),
    }


def _duplicates(opened: Dataset) -> Duplicates | None:
    """The copies in a data set, also where its source does not look for them.

    None if nothing was decoded on opening.
    """
    from fedsight.data.duplicates.found import copied

    if opened.duplicates is not None:
        return opened.duplicates
    found = copied(opened)
    return None if found is None else found.duplicates


def _say_duplicates(opened: Dataset) -> None:
    """Print the pairs that are equal or look alike, and how many groups there are."""
    from fedsight.data.groups import group_counts

    found = _duplicates(opened)
    if found is not None:
        if opened.duplicates is None:  # otherwise the notes say it
            for sentence in found.sentences(opened.preprocess.modalities):
                echo(from_english(sentence))
        for pair in found.exact.pairs:
            echo(message("equal: {pair}", pair=pair.shown))
        for pair in found.near.pairs:
            echo(message("alike: {pair}", pair=pair.shown))
    if (groups := group_counts(opened)) is not None:
        echo(
            message(
                "groups: {groups:,}, the largest of {largest:,} images; in two parts: {parts:,}, "
                "at two sites: {sites:,}",
                groups=groups.groups,
                largest=groups.largest,
                parts=groups.across_parts,
                sites=groups.across_sites,
            )
        )


def _add_pixels(table: PrintableTable, opened: Dataset) -> None:
    import torch

    size = opened.preprocess
    colour = message("grey") if size.channels == 1 else message("colour")
    shape = f"{size.height} x {size.width}"
    fitted = message("{shape}, {colour}, fit: {fit}", shape=shape, colour=colour, fit=size.fit)
    table.add_row(message("size"), fitted)
    step = max(1, len(opened.train) // 1000)
    pixels = opened.train.images.read(torch.arange(0, len(opened.train), step))
    mean, std = pixels.mean(dim=(0, 2, 3)).tolist(), pixels.std(dim=(0, 2, 3)).tolist()
    table.add_row(message("mean (measured)"), ", ".join(f"{value:.3f}" for value in mean))
    table.add_row(message("std (measured)"), ", ".join(f"{value:.3f}" for value in std))
    known = message("mean {mean}, std {std}", mean=list(size.mean), std=list(size.std))
    table.add_row(message("normalised with"), known)


def _class_table(opened: Dataset) -> PrintableTable:
    from fedsight.cli.tables import make_table

    table = make_table("class", "training", "test", right=("training", "test"), least=4)
    train, test = (part.counts(len(opened.classes)) for part in (opened.train, opened.test))
    for number, name in enumerate(opened.classes[:100]):
        table.add_row(name, str(train[number]), str(test[number]))
    if len(opened.classes) > 100:
        table.add_row(message("... {n} more", n=len(opened.classes) - 100), "", "")
    return table


def _split_table(partition: Partition, counts: Any, classes: Sequence[str]) -> PrintableTable:
    """A row per site: all it has, then as many classes as the terminal has room for."""
    from rich.console import Console

    from fedsight.cli.tables import make_table

    console = Console()
    room = (console.width - len(partition.name(0)) - 9) // 5
    shown = classes if len(classes) <= room else classes[: max(1, room - 1)]
    more = ["..."] if len(shown) < len(classes) else []
    none = "·" if console.encoding.startswith("utf") else "-"
    table = make_table("site", "all", right=("all",), whole=("site",), least=4)
    for name in (*shown, *more):
        table.add_column(name, justify="right", overflow="fold", min_width=4)
    for site in range(min(len(counts), _SHOWN)):
        cells = [str(count) if count else none for count in counts[site, : len(shown)]]
        table.add_row(partition.name(site), str(counts[site].sum()), *cells)
    return table
