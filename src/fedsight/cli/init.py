"""`fedsight init`: from a folder of images to a config that trains."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.output import echo
from fedsight.core.errors import ConfigError, Problem, StoreError
from fedsight.language.english import from_english
from fedsight.language.message import Text, message

if TYPE_CHECKING:
    from fedsight.program.draft.base import Asked, Found
    from fedsight.program.draft.fitting import Fit, Sample

_SHOWN = 20  # images that cannot be read
FolderArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        help="A folder of images, or a CSV, COCO JSON or data.yaml.",
        show_default=False,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take what was guessed.")]
OutFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The config (default: FOLDER.toml).", show_default=False),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        metavar="TASK",
        help="The task, if not a guess: classify, multilabel, ordinal, detect, segment or faces.",
        show_default=False,
    ),
]
ClassList = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C",
        help="The classes in their order; for grades, the lowest first.",
        show_default=False,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(min=8, max=8192, help="Pixels a side of the network's input.", show_default=False),
]
SiteCount = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Simulated sites, if the images do not say where they come from.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def on_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def init_command(
    folder: FolderArgument,
    yes: Yes = False,
    out: OutFile = None,
    task: TaskOption = None,
    classes: ClassList = None,
    size: Size = None,
    sites: SiteCount = None,
    force: Force = False,
) -> None:
    """Write a config for a folder of your own images: task, data, model and training.

    What the folder holds is guessed from its layout. On a terminal each guess is a question with
    that answer as the default. The config is checked before it is written.

    Example: fedsight init my_images --yes
    """
    from fedsight.core.files import make_folder, write_atomically
    from fedsight.data.base import counted_parts
    from fedsight.program.draft.base import Asked
    from fedsight.program.draft.checked import checked
    from fedsight.program.draft.fitting import fitted, sampled
    from fedsight.program.draft.guess import look
    from fedsight.runs.phases import shown

    path = out or Path(f"{_name(folder)}.toml")
    ask = not yes and on_terminal()
    _check_place(path, force, ask)
    names = tuple(one.strip() for one in classes.split(",")) if classes else None
    asked = Asked(_known(task), names)
    found = look(folder, asked)
    if ask and task is None:
        found = _ask_task(found, folder, asked)
    sample = sampled(found)
    if ask:
        size = size or _ask_size(found, sample)
        sites = sites or _ask_sites(found, sample)
    fit = fitted(found, sample, size, sites)
    for reason in found.guess.reasons:
        echo(f"- {from_english(reason)}")
    for note in found.opened.said:
        echo(f"- {from_english(note)}")
    echo(
        message(
            "Task: {task}; {images}; {rest}",
            task=fit.task["name"],
            images=from_english(counted_parts(found.opened)),
            rest=_described(fit),
        )
    )
    with shown():
        text, left_out = checked(found, fit, path)
    for name in left_out[:_SHOWN]:
        echo(message("cannot be read, left out: {path}", path=name))
    if left_out:
        many = len(left_out)
        echo(message('{n} images cannot be read: the config says corrupt = "skip"', n=many))
    make_folder(path.resolve().parent)
    write_atomically(path, text.encode())
    echo(message("Wrote {path}. Next: fedsight run {path}", path=path))


def _name(folder: Path) -> str:
    """What the config is called: as the folder, in characters that any system takes."""
    plain = folder.resolve()
    word = plain.stem if plain.is_file() else plain.name
    return re.sub(r"[^\w.-]+", "_", word).strip("._") or "images"


def _check_place(path: Path, force: bool, ask: bool) -> None:
    """StoreError for a name that no config has, and for a file that exists and is to stay."""
    if path.suffix != ".toml":
        raise StoreError(f"'{path}' does not end in .toml", "give the config such a name")
    question = str(message("{path} exists. Replace it?", path=path))
    if not path.exists() or force or (ask and typer.confirm(question)):
        return
    raise StoreError(f"{path} exists", "give another name with --out, or replace it with --force")


def _known(task: str | None) -> str | None:
    from fedsight.core.registry import nearest
    from fedsight.program.draft.base import TASKS

    if task is not None and task not in TASKS:
        cause = f"'{task}' is not a task that a config can be written for"
        raise ConfigError([Problem("--task", cause, nearest(task, TASKS))])
    return task


def _ask_task(found: Found, folder: Path, asked: Asked) -> Found:
    """The guess, or another one if the user says that it is for another task."""
    from fedsight.program.draft.base import TASKS, Asked
    from fedsight.program.draft.guess import look

    guessed = found.guess.task
    for reason in found.guess.reasons:
        echo(f"- {from_english(reason)}")
    task = ""
    question = str(message("Task ({tasks})", tasks=", ".join(TASKS)))
    while task not in TASKS:
        task = typer.prompt(question, default=guessed).strip()
    if task == guessed:
        return found
    classes = asked.classes
    if task == "ordinal" and classes is None:
        listed = ",".join(found.opened.classes)
        question = str(message("Grades, the lowest first"))
        words = typer.prompt(question, default=listed).split(",")
        classes = tuple(one.strip() for one in words)
    return look(folder, Asked(task, classes))


def _ask_size(found: Found, sample: Sample) -> int | None:
    from fedsight.program.draft.fitting import fitted

    usual = fitted(found, sample, None, None).data.get("size")
    if usual is None:
        return None
    question = message("Pixels a side of the network's input")
    if sample.side:
        question = message(
            "{question} (the images have about {n})", question=question, n=sample.side
        )
    size: int = typer.prompt(str(question), default=usual)
    return size


def _ask_sites(found: Found, sample: Sample) -> int | None:
    from fedsight.program.draft.fitting import fitted

    usual = fitted(found, sample, None, None).split.get("sites")
    if usual is None:
        return None
    question = message("The images name no sites. How many to simulate")
    sites: int = typer.prompt(str(question), default=usual)
    return sites


def _described(fit: Fit) -> Text:
    """Sites, size and model in words."""
    simulated = fit.split.get("sites")
    where = message("{n} simulated sites", n=simulated)
    if simulated is None:
        where = message("the images' own sites")
    model = fit.model.get("architecture", fit.model["name"])
    if "size" not in fit.data:
        return message("{where}; {model}", where=where, model=model)
    size = fit.data["size"]
    return message("{where}; {n} pixels a side, {model}", where=where, n=size, model=model)
