"""`fedsight explain`: which regions of an image an answer rests on, and how far to believe that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsight.cli.output import echo
from fedsight.cli.plugin_files import PluginFiles, import_plugins
from fedsight.cli.use import RunArgument, SiteOption, refuse_unread
from fedsight.core.errors import DataError
from fedsight.language.english import from_english
from fedsight.language.message import Text, message

if TYPE_CHECKING:
    from fedsight.inference.examples import Example, Examples
    from fedsight.inference.explain import Explanation
    from fedsight.inference.saved import Saved

Images = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[IMAGE]...",
        help="Images; folders are searched. Of faces, the first is compared with each other one.",
        show_default=False,
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="grad-cam, integrated-gradients, occlusion or attention-rollout; may be repeated "
        "(default: all that the network allows).",
        show_default=False,
    ),
]
Layer = Annotated[
    str | None,
    typer.Option(help="The layer that Grad-CAM is made of (default: the last one with maps)."),
]
Target = Annotated[
    str | None,
    typer.Option(metavar="LABEL", help="Explain this class instead of the answer."),
]
Box = Annotated[
    int, typer.Option(min=1, help="Of a detector: which of its boxes, by its score from 1.")
]
ExamplesOption = Annotated[
    int,
    typer.Option(
        "--examples", min=0, metavar="N", help="Also find the N training images most like each."
    ),
]
At = Annotated[
    str | None,
    typer.Option(
        metavar="SITE", help="With --examples: the site of a simulation whose images they are."
    ),
]
Among = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="With --examples: the folder of a site's own images."),
]
Measure = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Measure on N test images of the run how faithful each method is; the report then "
        "shows it, and some of these images: whoever gets the report gets them.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Write each image there as PNG, with what the methods show beside."
    ),
]


def explain_command(
    run: RunArgument,
    images: Images = None,
    method: Methods = None,
    layer: Layer = None,
    target: Target = None,
    box: Box = 1,
    examples: ExamplesOption = 0,
    at: At = None,
    among: Among = None,
    measure: Measure = None,
    out: Out = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of a table.")
    ] = False,
    site: SiteOption = None,
    plugin: PluginFiles = None,
) -> None:
    """Show which regions of images a model's answers rest on, and how far to believe it.

    Of each method two figures are shown: how high the answer's probability stays on average while
    the regions that the method names are taken away (deletion: the lower the better), and while
    only they are shown (insertion: the higher the better). With --measure they are compared on
    the same images with regions chosen at random and with edges: a method that is better than both
    holds, one that is worse fails. The report then contains test images of the run.

    Example: fedsight explain runs/first photo.jpg --method occlusion --out explained/
    """
    from fedsight.inference.explain import Asked, each_explained
    from fedsight.inference.explain import measure as measure_on
    from fedsight.inference.saved import load

    import_plugins(plugin)
    if not images and measure is None:
        raise DataError("there is no image to explain", "name one, or give --measure 100")
    _check_examples(examples, at, among, site)
    saved, asked = load(run, site), Asked(method, layer, target, box)
    if measure is not None:
        _say_measured(measure_on(saved, run, asked, measure, site))
        _report_again(run)
    if not images:
        return
    near = _examples(saved, run, at or site, among) if examples else None
    answers = each_explained(saved, images, asked)
    paths = None if out is None else _destinations(saved, images, out, among, near is not None)
    found, alike = [], []
    for number, one in enumerate(answers):
        alike.append(_near(near, one, examples))
        if paths is not None:
            _draw(one, alike[-1], paths[number])
        found.append(replace(one, picture=None))
    if as_json:
        _print_json(found, alike)
    else:
        layer = next((one.layer for one in found if one.layer), None)
        _print_table(found, alike, _known(run, site, layer))
    refuse_unread([(str(one.path), one.error) for one in found], "images")


def _check_examples(count: int, at: str | None, among: Path | None, site: str | None) -> None:
    """DataError for options that would be ignored, or show one site's images by another's model."""
    if not count and (at is not None or among is not None):
        raise DataError(
            "--at and --among say whose images examples are, and none are asked for",
            "add --examples 3, or leave them out",
        )
    if at is not None and among is not None:
        raise DataError("examples are of one place: --at or --among", "leave out one of them")
    if at is not None and site is not None and at != site:
        raise DataError(
            f"the images of site '{at}' are not shown beside the model of '{site}'",
            "give --site and --at the same site",
        )


def _examples(saved: Saved, run: Path, at: str | None, folder: Path | None) -> Examples:
    from fedsight.inference.examples import among, of_site

    return of_site(saved, run, at) if folder is None else among(saved, folder)


def _near(near: Examples | None, one: Explanation, count: int) -> list[Example]:
    return [] if near is None or one.error is not None else near.nearest(one.path, count)


def _report_again(run: Path) -> None:
    from fedsight.report.page import build

    echo(message("Report: {page}", page=build([run])))


def _known(run: Path, site: str | None, layer: str | None) -> Mapping[str, Any]:
    """What was measured on this run of each method, for this site's model and this layer of
    Grad-CAM; empty: nothing."""
    from fedsight.coordinator.store import RunStore
    from fedsight.evaluation.explanations.measure import FILE

    if not (run / FILE).is_file():
        return {}
    kept = RunStore(run).read_json(FILE)
    methods = kept.get("methods")
    if not isinstance(methods, dict) or kept.get("site") != site:
        return {}
    other = kept.get("layer") != layer
    return {name: told for name, told in methods.items() if not (other and name == "grad-cam")}


def _destinations(
    saved: Saved, images: Sequence[Path], folder: Path, among: Path | None, examples: bool
) -> list[tuple[Path, ...]]:
    """Where the panels of each explanation go, and with `examples` those of its image.

    StoreError, before anything is written, if one of them is a file that is read.
    """
    from fedsight.core.files import make_folder
    from fedsight.inference.drawing import free_paths, require_apart
    from fedsight.inference.explain import explained_of
    from fedsight.inference.inputs import find_files

    files = find_files(images, "image")
    endings = ("", "-examples") if examples else ("",)
    make_folder(folder)
    stems = [one.stem + end for one in explained_of(saved, files) for end in endings]
    paths = free_paths(folder, stems)
    own = [] if among is None else find_files([among], "image")
    require_apart(paths, [*files, *own], "--out")
    return [tuple(paths[at : at + len(endings)]) for at in range(0, len(paths), len(endings))]


def _draw(one: Explanation, beside: Sequence[Example], paths: tuple[Path, ...]) -> None:
    """Write the panels of an explanation, and its examples."""
    from fedsight.inference.drawing import write_png
    from fedsight.inference.examples import drawn

    if one.error is not None or one.picture is None:
        return
    write_png(one.panels(), paths[0])
    if beside:
        write_png(drawn(one.picture, beside), paths[1])


def _print_json(found: Sequence[Explanation], alike: Sequence[Sequence[Example]]) -> None:
    tables = [
        {**one.table(), **({"examples": [e.table() for e in beside]} if beside else {})}
        for one, beside in zip(found, alike, strict=True)
    ]
    echo(json.dumps(tables, indent=2, ensure_ascii=False))


def _print_table(
    found: Sequence[Explanation], alike: Sequence[Sequence[Example]], known: Mapping[str, Any]
) -> None:
    from rich.console import Console
    from rich.markup import escape

    from fedsight.cli.tables import PrintableTable

    table = PrintableTable()
    headings = (
        message("image"), message("label"), message("score"), message("method"),
        message("deletion"), message("insertion"),
    )  # fmt: skip
    for heading in headings:
        table.add_column(str(heading), overflow="fold")
    for one in found:
        where = str(one.path) if one.other is None else f"{one.path} – {one.other}"
        if one.error is not None:
            why = escape(str(from_english(one.error)))
            table.add_row(escape(where), f"[red]{why}[/red]", *[""] * 4)
            continue
        for number, name in enumerate(one.heats):
            first = (
                (escape(where), escape(one.label), f"{one.score:.3f}") if not number else [""] * 3
            )
            figures = (f"{one.deletion[name]:.3f}", f"{one.insertion[name]:.3f}")
            table.add_row(*first, str(_named(name, known)), *figures)
    Console().print(table)
    _say_of_methods(found)
    for one, beside in zip(found, alike, strict=True):
        if beside:
            echo(message("Most like {path} (distance, label, image):", path=one.path))
        for example in beside:
            echo(f"  {example.distance:.2f} {example.label} {example.name}")


def _say_of_methods(found: Sequence[Explanation]) -> None:
    """Which layer Grad-CAM is made of, and whether integrals are as complete as they should be."""
    from fedsight.evaluation.explanations.integrals import COMPLETE

    for layer in dict.fromkeys(one.layer for one in found if one.layer):
        echo(message("Grad-CAM is made of the layer {layer}.", layer=layer))
    for one in found:
        if one.missed is not None and one.missed > COMPLETE:
            echo(
                message(
                    "{path}: the integrated gradients miss what the score changes by; off by "
                    "{missed} of it.",
                    path=one.path, missed=f"{one.missed:.1%}",
                )
            )  # fmt: skip


def _named(name: str, known: Mapping[str, Any]) -> Text | str:
    """A method, and whether it fails on this run or that is open."""
    told = known.get(name)
    result = told.get("result") if isinstance(told, dict) else None
    if result == "fails":
        return message("{method} (fails)", method=name)
    return message("{method} (not decided)", method=name) if result == "undecided" else name


def _say_measured(found: Mapping[str, Any]) -> None:
    """A line for each method and what it is compared with."""
    from rich.console import Console

    from fedsight.cli.tables import PrintableTable
    from fedsight.report.explanations import result

    table = PrintableTable()
    headings = (message("method"), message("deletion"), message("insertion"), message("result"))
    for heading in headings:
        table.add_column(str(heading), overflow="fold")
    for name, told in {**found["methods"], **found["baselines"]}.items():
        verdict = str(result(told["fails"], told["undecided"])) if "result" in told else ""
        spreads = [_spread(told[key]) for key in ("deletion", "insertion")]
        table.add_row(name, *spreads, verdict)
    Console().print(table)


def _spread(told: Mapping[str, float]) -> str:
    return f"{told['mean']:.3f} ({told['low']:.3f} – {told['high']:.3f})"
