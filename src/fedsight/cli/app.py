"""The command-line application with all its commands."""

from __future__ import annotations

from typing import Annotated

import typer

import fedsight
from fedsight.cli import (
    catalogue,
    console,
    data,
    doctor,
    explain,
    faces,
    federation,
    health,
    init,
    operators,
    plan,
    privacy,
    report,
    runs,
    server,
    site,
    sweep,
    tokens,
    train,
    use,
)
from fedsight.cli.language import OPTION, LocalisedGroup
from fedsight.cli.mistyped import Group
from fedsight.cli.output import echo

app = typer.Typer(
    name="fedsight",
    cls=LocalisedGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated learning for image recognition. Start with: fedsight run --example fashion",
)
app.command("init")(init.init_command)
app.command("run")(train.run_command)
app.command("compare")(train.compare_command)
app.command("sweep")(sweep.sweep_command)
app.command("check")(train.check_command)
app.command("plan")(plan.plan_command)
app.command("resume")(train.resume_command)
app.command("report")(report.report_command)
app.command("predict")(use.predict_command)
app.command("explain")(explain.explain_command)
app.command("export")(use.export_command)
app.command("models")(catalogue.models_command)
app.command("algorithms")(catalogue.algorithms_command)
app.command("tasks")(catalogue.tasks_command)
app.command("console")(console.console_command)
app.command("doctor")(doctor.doctor_command)
app.command("health")(health.health_command)
app.add_typer(data.app, name="data", cls=Group)
app.add_typer(privacy.app, name="privacy", cls=Group)
app.add_typer(faces.app, name="faces", cls=Group)
app.add_typer(runs.app, name="runs", cls=Group)
app.add_typer(tokens.app, name="tokens", cls=Group)
app.add_typer(federation.app, name="federation", cls=Group)
app.add_typer(operators.app, name="operator", cls=Group)
app.add_typer(server.app, name="server", cls=Group)
app.add_typer(site.app, name="site", cls=Group)


def _version(asked: bool) -> None:
    if asked:
        echo(f"fedsight {fedsight.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    lang: Annotated[
        str | None,
        typer.Option(
            OPTION,
            metavar="en|zh",
            help="The language, here or after a command (default: that of LC_ALL, LC_MESSAGES or "
            "LANG).",
            show_default=False,
        ),
    ] = None,
) -> None:
    pass  # `--lang` has been taken out of the arguments: cli/language.py
