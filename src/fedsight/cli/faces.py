"""`fedsight faces`: enrol people in an encrypted gallery, verify, identify and delete them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.output import echo
from fedsight.language.message import Text, message, plural

if TYPE_CHECKING:
    from fedsight.inference.gallery import Secret
    from fedsight.inference.recognition import Match

app = typer.Typer(
    no_args_is_help=True,
    help="Recognise people with a run of the task `faces`; the gallery stays on this machine.",
)
VARIABLE = "FEDSIGHT_PASSPHRASE"
UNGUARANTEED = message(
    "the false accept rate was guaranteed for those who were enrolled before; choose the threshold "
    "again: fedsight faces calibrate"
)
OUT_OF_REACH = message(
    "the threshold is out of reach, so nobody is accepted: none that can be reached has this false "
    "accept rate; choose it on more people, or for a higher rate: fedsight faces calibrate"
)
NOT_THE_PERSON = 10  # exit code of `verify` for an answer of no: no family of errors has it

RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run folder of the task `faces`.", show_default=False),
]
File = Annotated[
    Path, typer.Argument(metavar="GALLERY", help="The gallery file.", show_default=False)
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The person's name.", show_default=False)]
ImagesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="IMAGE...", help="Image files or folders.", show_default=False),
]
Key = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The key file (default: GALLERY.key).", show_default=False),
]
Phrase = Annotated[
    bool,
    typer.Option(
        "--passphrase", help=f"Use a passphrase (${VARIABLE}, or asked for) instead of a key file."
    ),
]
FarOption = Annotated[
    float, typer.Option(min=1e-9, max=0.999, help="The false accept rate of the threshold.")
]
Asked = Annotated[
    float | None,
    typer.Option(
        min=1e-9,
        max=0.999,
        help="The false accept rate of the run's threshold (default: 0.01). A calibrated gallery "
        "has its own and accepts no other.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SiteOption = Annotated[
    str | None,
    typer.Option(help="Use this site's own model, if there is one.", show_default=False),
]


@app.command("enrol")
def enrol_command(
    run: RunArgument,
    gallery: File,
    name: Name,
    images: ImagesArgument,
    key: Key = None,
    passphrase: Phrase = False,
    site: SiteOption = None,
) -> None:
    """Add a person's images to the gallery, as templates; the images are not stored.

    Example: fedsight faces enrol runs/faces staff.gallery "Ada L." ada1.jpg ada2.jpg
    """
    from fedsight.inference.gallery import Gallery, locked, read, write
    from fedsight.inference.inputs import find_files
    from fedsight.inference.recognition import Recogniser, enrol

    model, secret = Recogniser(run, site), _secret(gallery, key, passphrase)
    vectors = model.vectors(find_files(images, "image"))
    with locked(gallery):
        kept = model.open(read(gallery, secret)) if gallery.exists() else Gallery(model.digest)
        guaranteed = kept.guaranteed
        enrol(kept, name, vectors)
        write(gallery, kept, secret)
    count = len(kept.people[name])
    echo(
        plural(
            "{name}: {n} template added, {total} in total",
            "{name}: {n} templates added, {total} in total",
            len(vectors),
            name=name,
            total=count,
        )
    )
    if kept.threshold is not None and count not in kept.calibrated:
        echo(
            message(
                "the threshold was chosen for another number of templates per person ({numbers}); "
                "choose it again: fedsight faces calibrate",
                numbers=", ".join(map(str, kept.calibrated)),
            )
        )
    elif guaranteed:
        echo(UNGUARANTEED)


@app.command("verify")
def verify_command(
    run: RunArgument,
    gallery: File,
    name: Name,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", show_default=False)],
    key: Key = None,
    passphrase: Phrase = False,
    far: Asked = None,
    as_json: AsJson = False,
    site: SiteOption = None,
) -> None:
    """Check whether an image shows the claimed person.

    The exit code is 0 for yes and 10 for no; every other code is an error.

    Example: fedsight faces verify runs/faces staff.gallery "Ada L." door.jpg
    """
    from fedsight.inference.gallery import read
    from fedsight.inference.recognition import Recogniser

    model = Recogniser(run, site)
    kept = model.open(read(gallery, _secret(gallery, key, passphrase)))
    kept.templates(name)
    found = model.matches(kept, model.vectors([image])[0], far)
    match = next(one for one in found if one.name == name)
    least, guaranteed = model.threshold(kept, far), model.guarantees(kept, far)
    if as_json:
        limit = {"threshold": least, "guaranteed": guaranteed, "reachable": _reachable(least)}
        echo(json.dumps({"path": str(image), **match.table(), **limit}))
    else:
        rate = message("its false accept rate is guaranteed")
        if not guaranteed:
            rate = message("its false accept rate is estimated, and not guaranteed")
        values = {"match": _line(match), "threshold": f"{least:.3f}", "rate": rate}
        if match.accepted:
            echo(message("yes: {match}, threshold {threshold} ({rate})", **values))
        else:
            echo(message("no: {match}, threshold {threshold} ({rate})", **values))
        if not _reachable(least):
            echo(OUT_OF_REACH)
    if not match.accepted:
        raise typer.Exit(NOT_THE_PERSON)


@app.command("identify")
def identify_command(
    run: RunArgument,
    gallery: File,
    images: ImagesArgument,
    key: Key = None,
    passphrase: Phrase = False,
    far: Asked = None,
    top: Annotated[int, typer.Option(min=1, help="Number of people to show for each image.")] = 1,
    as_json: AsJson = False,
    site: SiteOption = None,
) -> None:
    """Find which enrolled person each image shows, if any.

    Example: fedsight faces identify runs/faces staff.gallery door/
    """
    from fedsight.inference.gallery import read
    from fedsight.inference.inputs import find_files
    from fedsight.inference.recognition import Recogniser

    model = Recogniser(run, site)
    kept = model.open(read(gallery, _secret(gallery, key, passphrase)))
    files = find_files(images, "image")
    answers = [model.matches(kept, vector, far)[:top] for vector in model.vectors(files)]
    if as_json:
        pairs = zip(files, answers, strict=True)
        echo(json.dumps([_table(file, found) for file, found in pairs], indent=2))
        return
    for file, found in zip(files, answers, strict=True):
        echo(f"{file}: {_answer(found)}")
    if not _reachable(model.threshold(kept, far)):
        echo(OUT_OF_REACH)


@app.command("calibrate")
def calibrate_command(
    run: RunArgument,
    gallery: File,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A folder with one folder per person.", show_default=False
        ),
    ],
    key: Key = None,
    passphrase: Phrase = False,
    far: FarOption = 0.01,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Choose by the comparisons alone: needs fewer people, and may let more pass.",
        ),
    ] = False,
    site: SiteOption = None,
) -> None:
    """Choose the gallery's threshold on people of this site, neither trained on nor enrolled.

    A stranger drawn like them then passes for the people who are enrolled now in no more than this
    share of comparisons, on average; a rate of 0.01 takes 99 people. With --estimate each of them
    needs as many images as the enrolled people have templates.

    Example: fedsight faces calibrate runs/faces staff.gallery volunteers/ --far 0.01
    """
    from fedsight.inference.gallery import locked, read, write
    from fedsight.inference.recognition import Recogniser, calibrate, guarantee

    model, secret = Recogniser(run, site), _secret(gallery, key, passphrase)
    people = model.volunteers(folder)
    with locked(gallery):
        kept = model.open(read(gallery, secret))
        compared = (calibrate if estimate else guarantee)(kept, people, far)
        write(gallery, kept, secret)
    values = {"threshold": f"{kept.threshold:.3f}", "rate": far, "n": compared}
    if estimate:
        echo(
            message(
                "threshold {threshold} for a false accept rate of {rate:g}, from {n} comparisons",
                **values,
            )
        )
    else:
        echo(
            message(
                "threshold {threshold} for a false accept rate of at most {rate:g}, from {n} "
                "comparisons",
                **values,
            )
        )
    if kept.threshold is not None and not _reachable(kept.threshold):
        echo(OUT_OF_REACH)


@app.command("list")
def list_command(gallery: File, key: Key = None, passphrase: Phrase = False) -> None:
    """List the enrolled people with their number of templates.

    Example: fedsight faces list staff.gallery
    """
    from fedsight.inference.gallery import read

    for name, templates in read(gallery, _secret(gallery, key, passphrase)).people.items():
        echo(f"{name}: {len(templates)}")


@app.command("delete")
def delete_command(gallery: File, name: Name, key: Key = None, passphrase: Phrase = False) -> None:
    """Delete a person's templates permanently; with a key file, the key changes too.

    Example: fedsight faces delete staff.gallery "Ada L."
    """
    from fedsight.inference.gallery import erase, read

    secret = _secret(gallery, key, passphrase)
    guaranteed = read(gallery, secret).guaranteed
    count = erase(gallery, name, secret)
    echo(plural("{name}: {n} template deleted", "{name}: {n} templates deleted", count, name=name))
    if guaranteed:
        echo(UNGUARANTEED)


def _secret(gallery: Path, key: Path | None, passphrase: bool) -> Secret:
    from fedsight.core.errors import DataError
    from fedsight.inference.gallery import KeyFile, Passphrase

    if key is not None and key.absolute() == gallery.absolute():
        raise DataError("the key file cannot be the gallery itself", "name another file with --key")
    if not passphrase:
        return KeyFile(key or gallery.with_name(f"{gallery.name}.key"))
    if key is not None:
        raise DataError("a gallery has either a key file or a passphrase", "leave one of them out")
    again = False if gallery.exists() else str(message("passphrase again"))
    text = os.environ.get(VARIABLE) or typer.prompt(
        str(message("passphrase")), hide_input=True, confirmation_prompt=again
    )
    return Passphrase(text)


def _reachable(threshold: float) -> bool:
    """Whether any cosine reaches it."""
    return threshold <= 1


def _answer(found: list[Match]) -> Text | str:
    """Who an image shows."""
    accepted = [str(_line(one)) for one in found if one.accepted]
    if accepted:
        return "; ".join(accepted)
    if not found:
        return message("nobody enrolled")
    return message("nobody enrolled (nearest: {match})", match=_line(found[0]))


def _line(match: Match) -> Text:
    return message("{name}, score {score}", name=match.name, score=f"{match.score:.3f}")


def _table(file: Path, found: list[Match]) -> dict[str, object]:
    name = found[0].name if found and found[0].accepted else None
    return {"path": str(file), "name": name, "nearest": [one.table() for one in found]}
