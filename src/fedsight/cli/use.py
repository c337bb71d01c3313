"""`fedsight predict` and `fedsight export`: using a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.complete import run_folders
from fedsight.cli.output import echo, reasons
from fedsight.cli.plugin_files import PluginFiles, import_plugins
from fedsight.core.errors import DataError, StoreError
from fedsight.language.english import from_english
from fedsight.language.message import Text, message

if TYPE_CHECKING:
    from fedsight.inference.predict import Prediction
    from fedsight.inference.trusted import Cover

RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A run folder.", show_default=False, autocompletion=run_folders
    ),
]
SiteOption = Annotated[
    str | None,
    typer.Option(
        help="Use this site's model, if the algorithm keeps part of it at the sites.",
        show_default=False,
    ),
]


DrawFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Write each image there as PNG, with the predicted boxes.",
        show_default=False,
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="X",
        help="Leave out boxes with a lower score; mark other answers below it as unsure.",
        show_default=False,
    ),
]
Coverage = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Show a set of labels for each that holds the true one with this probability, such "
        "as 0.9; or a mask, labels, grades or boxes that miss no more than the rest on average.",
        show_default=False,
    ),
]
Abstain = Annotated[
    bool,
    typer.Option(
        "--abstain",
        help="With --coverage: answer only where the set is a single label and the image is not "
        "unlike those of the training.",
    ),
]
CsvFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Also write path, label, probability (and box, or set and calibration) as CSV.",
        show_default=False,
    ),
]


class ExportFormat(StrEnum):
    """The file formats of `fedsight export`."""

    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    SAFETENSORS = "safetensors"


def predict_command(
    run: RunArgument,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Images, or for a run on texts .txt, .csv and .jsonl; folders are searched.",
            show_default=False,
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of a table.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Labels to show for each.")] = 1,
    draw: DrawFolder = None,
    confidence: Confidence = None,
    coverage: Coverage = None,
    abstain: Abstain = False,
    csv: CsvFile = None,
    site: SiteOption = None,
    plugin: PluginFiles = None,
) -> None:
    """Predict labels and probabilities, or boxes, for images or texts.

    A `.txt` file is one text; CSV and JSONL files hold one per row, in the column `text`. Files
    that cannot be read are listed with the reason; the others are still answered, and the exit
    code is 3. With --confidence, an answer that does not reach it is shown as unsure, and has
    `"sure": false` in JSON; boxes that do not are left out. Images unlike those of the training are
    marked, if the run has learned what those are like.

    Example: fedsight predict runs/first photo.jpg more-photos/ --top 3
    """
    from fedsight.data.passed_over import Tally
    from fedsight.inference.predict import predict
    from fedsight.inference.saved import load

    import_plugins(plugin)
    saved = load(run, site)
    seen = saved.preprocess
    if draw is not None and seen.modality != "image":
        raise DataError(f"boxes cannot be drawn on {seen.modalities}", "leave out --draw")
    passed_over = Tally()
    cover = _cover(coverage, abstain)
    found = predict(saved, files, passed_over=passed_over, confidence=confidence, cover=cover)
    if csv is not None:
        from fedsight.inference.predictions_csv import write_csv

        write_csv(found, saved.task.takes == "boxes", csv)
    if draw is not None:
        from fedsight.inference.drawing import draw_all, unshown

        draw_all(found, draw, seen)
        if said := unshown(found):
            echo(from_english(said), err=True)
    if as_json:
        echo(json.dumps([one.table() for one in found], indent=2, ensure_ascii=False))
    else:
        _print_table(seen.modality, found, top)
    _say_passed_over(passed_over.counts)
    refuse_unread([(one.where, one.error) for one in found], seen.modalities)


def _cover(coverage: float | None, abstain: bool) -> Cover | None:
    """The sets that are asked for."""
    from fedsight.inference.trusted import Cover

    if abstain and coverage is None:
        raise DataError("--abstain needs a coverage", "give for example --coverage 0.9")
    return None if coverage is None else Cover(coverage, abstain)


def export_command(
    run: RunArgument,
    format: Annotated[
        ExportFormat,
        typer.Option(
            help="onnx and torchscript include normalisation; safetensors holds only weights."
        ),
    ] = ExportFormat.ONNX,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write (default: export.onnx, .pt or .safetensors in the run folder).",
            show_default=False,
        ),
    ] = None,
    site: SiteOption = None,
    plugin: PluginFiles = None,
) -> None:
    """Write a run's model to one file that includes preprocessing and label names.

    onnx and torchscript take pixels (n, channels, height, width) from 0 to 1, or for texts word
    numbers (n, 1, 1, length), and give probabilities (n, classes); detectors give boxes, scores and
    classes. The file's metadata has the recipe for its input, step by step.

    Example: fedsight export runs/first --format onnx --out garments.onnx
    """
    from fedsight.inference.export import SUFFIX, export
    from fedsight.inference.saved import load

    import_plugins(plugin)
    path = out or run / f"export{SUFFIX[format.value]}"
    if path.resolve() == (run / "model.safetensors").resolve():
        raise StoreError(f"{path} is the run's own file", "choose another name with --out")
    echo(message("Wrote {path}", path=export(load(run, site), format.value, path)))


def refuse_unread(found: Sequence[tuple[str, str | None]], modalities: str) -> None:
    """DataError naming the files without an answer; `found` has each with its error."""
    bad = [where for where, error in found if error is not None]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(found)} {modalities} could not be read: {', '.join(bad[:5])}"
            f"{', ...' if len(bad) > 5 else ''}",
            "see the reasons above; restore these files or leave them out",
        )


def _say_passed_over(counts: Mapping[str, int]) -> None:
    """On standard error, so that JSON stays JSON."""
    from fedsight.data.passed_over import cures

    if counts:
        echo(message("files passed over: {reasons}", reasons=reasons(counts)), err=True)
        for cure in cures(counts):
            echo(from_english(cure), err=True)


def _print_table(modality: str, found: Sequence[Prediction], top: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    from fedsight.cli.tables import PrintableTable

    table, sets = PrintableTable(), any(one.classes is not None for one in found)
    headings = [from_english(modality), message("label"), message("probability")]
    for heading in [*headings, message("set")] if sets else headings:
        table.add_column(str(heading))
    for one in found:
        last = [_set(one)] if sets else []
        if one.answer is None:
            why = escape(str(from_english(one.error or "")))
            table.add_row(escape(one.where), f"[red]{why}[/red]", "", *last)
            continue
        shares = "\n".join(f"{p:.1%}" for _, p in one.answer.shown(top))
        table.add_row(escape(one.where), _label(one, top), shares, *last)
    Console().print(table)


def _set(one: Prediction) -> str:
    """The labels of an answer with a coverage; those of a mask with their shares of the image."""
    from rich.markup import escape

    marked = {} if one.answer is None else one.answer.details.get("marked", {})
    shares = [
        f"{name} {marked[name]:.1%}" if name in marked else name for name in one.classes or ()
    ]
    return escape(", ".join(shares) or "–")


def _label(one: Prediction, top: int) -> Text | str:
    """The most probable labels, or that there is none, or why to doubt them."""
    from rich.markup import escape

    if one.answer is None:
        return ""
    shown: Text | str = "\n".join(escape(label) for label, _ in one.answer.shown(top))
    if one.abstained:
        shown = message("no answer")
    elif one.sure is False:
        shown = message("unsure ({labels})", labels=shown)
    if one.unlike:
        shown = message("{labels}, unlike the training", labels=shown)
    return shown
