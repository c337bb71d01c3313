"""Write docs/reference/reference.md from the code: commands, settings, parts, files, exit codes.

    python tools/make_reference.py

Also writes docs/reference/compatibility.md. A test fails when either page is out of date.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import compatibility
import typer
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

from fedsight.algorithms.base import algorithms
from fedsight.cli.app import app
from fedsight.compression.base import codecs
from fedsight.compression.settings import Codecs, Down, Up
from fedsight.coordinator import store
from fedsight.core.errors import FedSightError
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.data.augment.base import Augmentation, augmentations
from fedsight.data.base import SizedSource, Source, sources
from fedsight.data.by_site import Form
from fedsight.data.partition import Split, splits
from fedsight.data.public import Public
from fedsight.data.shift import Shift
from fedsight.deploy.membership.retention import SiteKeep
from fedsight.deploy.monitoring.metrics import METRICS, prefix
from fedsight.deploy.monitoring.settings import HookSettings, MonitoringSettings
from fedsight.deploy.site.owner import DeliverySettings, SecAggLimits, SpeedSettings
from fedsight.governance.contract import Contract
from fedsight.models.adapters.base import LayerAdapter, adapters
from fedsight.models.base import Model, models
from fedsight.participation.timing import Timing
from fedsight.privacy.base import Protected, mechanisms
from fedsight.privacy.secure import Secure
from fedsight.program.config import OPTIONAL, SECTIONS
from fedsight.program.program import Speed
from fedsight.program.rounds import Rounds
from fedsight.program.train import Train
from fedsight.program.trust import Trust
from fedsight.tasks.base import tasks
from fedsight.tasks.metrics.base import metrics

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/reference.md"
COMPATIBILITY = ROOT / "docs/reference/compatibility.md"
EXAMPLE = ROOT / "src/fedsight/program/examples/fashion.toml"

INTRO = """\
# Reference

<!-- Generated from the code by tools/make_reference.py: change the code, not this page. -->

Every command, setting, part and file. To learn FedSight, start with the
[tutorial](../tutorial/first-run.md); for the meaning of the figures, see
[how it is measured](../explanation/how-it-is-measured.md).

Contents: [commands](#commands) · [exit codes](#exit-codes) ·
[configuration](#configuration) · [data sources](#data-sources) · [splits](#splits) ·
[models](#models) · [adapters](#adapters) · [tasks](#tasks) ·
[augmentations](#augmentations) · [algorithms](#algorithms) · [mechanisms](#mechanisms) ·
[run folder](#run-folder) · [a site's file](#a-sites-file)
"""

COMMANDS = """\
Every command takes `--lang en|zh`, before or after its name; without it the locale decides
([languages](../how-to/languages.md)). `fedsight --version` shows the version.
"""

CONFIGURATION = """\
A run is configured by one TOML file. Only `[data]` is required; every other setting has the default
given here. Relative paths are resolved from the file's folder. `--set SECTION.KEY=VALUE` changes a
setting for one run; the value is read as TOML, or as text if it is not valid TOML. An unknown key
is an error that suggests the nearest known one, and `fedsight check` lists every problem at once.

Everything except `name` and `[speed]` affects the result and is part of the run's *fingerprint*, a
SHA-256 over all settings with their defaults. File and folder paths are left out: the same program
has the same fingerprint wherever its images are.

The built-in example, `fedsight run --example fashion`:
"""

RUN_FILES = {
    "run.toml": "the program and the speed settings in full, with every default",
    "run.json": "fingerprint, environment, data, preprocessing, classes, model, and each site's "
    "images by class; with the codec `auto`, the `codec` that was chosen, for how many bits a "
    "second, and how long a site's order and reply then take; written before the first round",
    "history.jsonl": "one line per round, see below",
    "checkpoint.safetensors": "everything the next round depends on: round, global vector, the "
    "algorithm's state, bytes and seconds so far; in buffered rounds the models that sites still "
    "train from, and in a federation which sites those are; with `codec.down` the model that sites "
    "have, and the message that made it",
    "unmeasured.safetensors": "in a federation: the last round's result, written before its "
    "figures are measured; with masks or with noise at the coordinator every round's",
    "memory/": "what sites keep between rounds (personal weights, control variates), one folder "
    "per site; only if the algorithm needs it",
    "model.safetensors": "the trained weights by name, written at the end",
    "summary.json": "the final figures, see below; present once the run is finished",
    "temperature.json": "in a federation: the temperature that was fitted to the final model at "
    "its sites, to how many images, and why sites are not in it; sites answer what follows for one "
    "only",
    "trust.json": "what `predict --coverage` needs: the temperature, the histograms of scores by "
    "class and site, the threshold for unlike images; and the bins of the reliability diagram; of "
    "other tasks the sums of losses at each level, by class and site (`risk`)",
    "unlike.safetensors": "what an image's features are compared with: how they are mixed, what "
    "makes them uncorrelated, and the means of the classes",
    "evaluation.json": "confusion matrix, curves and tables of the task, the rule by which sites "
    "were tested, some test images with the model's answers, overall figures with their 95 % "
    "intervals or `no_interval`, why there is none, why sites released no figures, and what could "
    "not be computed (`failed`)",
    "comparison.json": "after `compare`: each site alone, pooled, and federated, and the model "
    "that each site got, with its figure and what is known of its answers (`trust`)",
    "delivered/": "after `compare`: the model that each site chose, by name of the site, and in "
    "`trust` what `predict --site --coverage` needs for it",
    "comparison.partial.json": "finished baselines, so that `resume` need not repeat them",
    "explanations.json": "after `explain --measure`: of each method deletion, insertion, the "
    "`gains` over random regions and edges, its likeness with shuffled weights, with 95 % "
    "intervals, the `result`, and in what it `fails` or is `undecided`; some test images",
    "rounds-K/": "after `resume --rounds`: the results of the first K rounds, a run folder to read",
    "report.html": "the report, a single self-contained file",
    "live.json": "what the run is doing while it goes on, for `fedsight runs` and the console; and "
    "how it ended, if it did not finish",
    "received.json": "in a federation: the sites that have the final model, and why others do not",
    "traffic.json": "in a federation on Linux: for each site the bytes that the server's TLS "
    "connections have `received` from it and `sent` to it during the run, with all that comes "
    "beside the encoded bytes: handshakes, framing, FLARE's own messages, keys",
}

SERIES_FILES = {
    "seed-N/": "the run with the seed N, a run folder",
    "series.json": "the seeds; once all are finished, mean, standard deviation, 95 % interval and "
    "the values of each figure, of each difference within a seed, and of each site if it has the "
    "same images with every seed",
    "series.toml": "the program with the first seed; `resume` reads it",
    "pooled.json": "training on all images pooled, if it depends on no seed: it is done once",
    "report.html": "the report of all runs side by side",
}

SWEEP_FILES = {
    "CONFIGURATION/seed-N/": "the run of a configuration with the seed N, a run folder",
    "sweep.json": "each configuration with its program, and the runs; once all have ended, mean, "
    "standard deviation, 95 % interval and values of each configuration's figure, its bytes and "
    "seconds, the paired difference of each two configurations with its p value, and the runs that "
    "failed; `resume` reads it",
    "report.html": "the report of all finished runs side by side",
}

DEPLOYED_FILES = {
    "job.json": "how the coordinator's last job of the run ended, or that it is running",
    ".lock": "held by the coordinator that is using the folder",
}

SITE_FILES = {
    "site.toml": "the owner's settings, see above",
    "owner.toml": "the settings in force: written when the site starts",
    "identity.toml": "the site's name, and the federation it belongs to",
    "request/, kit/": "the site's key, and the deployment engine's start-up files",
    "declared.json": "what the heartbeat tells the server (`contract.announce`)",
    "log.jsonl": "what left and what was refused: `fedsight site log`",
    "ledger.sqlite, ledger.head": "what left and what it cost, chained: `fedsight site ledger`",
    "memory/": "what algorithms keep at the site, one folder per run",
    "received/": "the models that runs ended with, as the coordinator sent them",
    "recognisers/": "the site's own recognisers, one folder per run, for `predict` and `export`: "
    "`fedsight site recognisers`",
    "process.txt, trainer.txt, delivery.txt, hooks.txt": "the output of the site's processes",
    "messages.txt": 'with `monitoring.log = "json"`: what is for the owner alone, since it may '
    "name files",
    "monitor.json": "what was told, so that hooks tell nothing twice",
}

SITE = """\
`site.toml` in a site's folder belongs to the owner. It is read when the site starts: restart the
site after an edit. `[data]` can be any of the [data sources](#data-sources). If a key is unknown or
its value does not fit, the site does not start; if the file becomes unreadable, jobs are refused.
"""

HISTORY = {
    "round": "from 1",
    "score": "the task's main figure after the round, from 0 to 1; null if the "
    "round was not evaluated",
    "loss": "likewise",
    "accuracy": "likewise, as every other figure of the task by its name, if evaluated",
    "model": "with `rounds.ema`: `moving average`, since these figures are those of the average, "
    "not of the model that the next round trains",
    "measured_on": "`validation part` or `test part`: the images that these figures rest on; null "
    "if the round was not evaluated",
    "not_measured": "in a federation: why sites with test images are not in these figures, by "
    "site; missing if all are, or say that they withhold theirs",
    "train_loss": "mean over the replies, weighted like the updates; null under `[privacy]`",
    "epsilon": "spent so far; null without `[privacy]`",
    "lr": "local learning rate at the start of the round",
    "cohort": "number of sites that were asked",
    "replies": "number of replies that were added",
    "sites": "names of the sites whose replies were added",
    "rejected": "site and reason of each rejected reply",
    "weight": "total weight of the replies",
    "bytes_up": "sent by the sites in this round: encoded updates, or 4 bytes per float32 value",
    "bytes_down": "received by the sites in this round: encoded differences, or whole models",
    "best": "where rounds are compared: the best round so far; else missing",
    "finish": "in the line of `[finish]`, one round more than the last: its name; else missing",
    "seconds": "duration of the round, including evaluation",
    "virtual_seconds": "virtual time at the end of the round, from the beginning of the run; "
    "missing without `[timing]`",
    "staleness": "in buffered rounds, by site: how many steps the model had taken since the site "
    "began, if any; else missing",
    "reply_seconds": "in buffered rounds of a federation, by site whose reply was added: real "
    "seconds between its order and its reply; else missing",
}

SUMMARY = {
    "name": "the program's name",
    "headline": "what the score is: accuracy, mean average precision, ...",
    "score": "the main figure of the final model on test images, from 0 to 1; null if no site "
    "released figures",
    "accuracy": "likewise, as every other figure of the task by its name",
    "loss": "the task's loss, of the final model on test images",
    "not_measured": "in a federation: why sites with test images are not in the figures, by site; "
    "missing if all are, or say that they withhold theirs",
    "score_interval": "the 95 % interval of `score` over other test images, null if not known",
    "model": "with `rounds.ema`: `moving average`, which is what was measured and delivered",
    "rounds": "rounds completed",
    "seconds": "sum over the federated rounds; does not include reading data, starting workers and "
    "baselines",
    "virtual_seconds": "virtual time at the end of the last round; missing without `[timing]`",
    "bytes_up": "sent by all sites in all rounds",
    "bytes_down": "received by all sites in all rounds",
    "shorter_codec": "the shortest `codec` that `[secure]` or `[privacy]` refuses, and the bytes "
    "of a site's `reply` and `order` in a round as they were and with it (`shortest_reply`, "
    "`shortest_order`); null if they refuse none",
    "fingerprint": "SHA-256 of the program",
    "model_sha256": "SHA-256 of `model.safetensors`",
    "privacy": "epsilon with its delta, unit, neighbours, sampling and mechanism, who must be "
    "trusted and what is not covered; null without `[privacy]`",
    "balanced_accuracy": "one class per image: the mean recall of the classes",
    "macro_f1": "one class per image: the mean F1 of the classes",
    "kept": "where rounds are compared: the round whose model this is, by which figure, the best "
    "round and its value, and whether patience ended training; else missing",
    "calibration": "`scaling`, and its `temperature`; the expected calibration error without what "
    "chance adds, before and after it (`ece_before`, `ece`, `ece_interval`), `ece_naive` with it, "
    "`rms` of the squares; `brier_before`, `brier`; numbers of images `fitted` and `tested`, `by` "
    "which images; `by_site`; or the `reason` why there is none, or why another scaling was taken",
    "sets": "prediction sets: `method`, `guarantee`, the coverage `asked` for, `coverage` and mean "
    "`size` on test images, `expected`, between which 95 % of runs are, `images` that they come "
    "from, `smallest` number that is enough; `by_site` also by the site's own threshold "
    "(`own_coverage`, `own_size`); or the `reason`. Of masks, labels, grades, boxes and faces, "
    "which `covers` names, the share of the truth that is held, its `threshold` of probability, "
    "score or likeness, `by_class`, `always` (classes that are never left out), `grouped` (whether "
    "numbers are of groups), `reason_by_site`, for boxes the `margin` and the share that is inside "
    "it (`margins`), and for faces each of `task.fars` in `at`",
    "ood": "unlike images: the `score`, its `threshold`, `asked` and measured `false_alarm`; or "
    "the `reason`",
    "overfitting": "`train` and `test`, shares of right answers of the `federated` and of the "
    "`pooled` model, their difference (`gap`) with its `interval`; `by_site` the gap of the model "
    "that a site gets and of its own, and their means over `sites`; or the `reason`",
    "robustness": "shares of right answers on `clean` and `corrupted` test images, `by_kind` of "
    "corruption at each of five severities; `by_site` and `sites` as in `overfitting`; or the "
    "`reason`. Of faces, figures of degraded images are beside the others (`degraded_auc`, "
    "`degraded_tar_at_0.01`; of each kind `smaller_...`, `darker_...`, `turned_...`, "
    "`covered_...`)",
    "shortcuts": "spots of an image that decide: `flagged`, those at one site (`site`, `label`, "
    "`box` as shares of the sides, for how many images it is `hottest`, there and `elsewhere`, the "
    "adjusted `p`, what came of pasting it, and the `verdict`: `shortcut`, `untested` or "
    "`differs`), `everywhere` those at two `sites` or more; how many `pairs` of a site and a class "
    "there are and were `compared`; spots left `unasked`, and of `classes` `classes_unasked`; "
    "`by_site` shares at the `border` and in the `peak`, `agreement` with the site's own model, "
    "classes that are `uncompared`; `tests` and `false_alarm`; or the `reason`",
    "worst_site": "name and score of the site with the lowest score, if the sites differ beyond "
    "chance; else null",
    "by_site": "figures for each of the first 200 sites",
    "federated": "after `compare`: the same as `score`",
    "pooled": "after `compare`: score of the model trained on all images in one place",
    "alone_mean": "after `compare`: mean of `alone_by_site` over the sites",
    "alone_by_site": "after `compare`: score of each site's own model on the same test images",
    "sites": "after `compare`: how many sites the following compares",
    "sites_better": "after `compare`: how many of them have more with the model that they got than "
    "alone; a site that got its own model does not count",
    "sites_worse": "after `compare`: the names of those that have less, beyond chance",
    "gain_by_site": "after `compare`: figure of the model that a site got minus that of its own, "
    "in points, on its own images or label mix",
    "delivered_by_site": "after `compare`: which kind of model each site got (`shared`, "
    "`corrected`, `tuned` or `alone`)",
}

MIXED_LIST = """\
An item of the list is a name, or a table with the name and settings:
`augment = ["flip", {name = "mixup", alpha = 0.2}]`. They are applied in the order given; those that
mix images come last, and of several of them one is drawn for each batch.
"""

STEPS = """\
An item of the list is a name, or a table with the name and settings:
`steps = ["rotate", {name = "quantise", bits = 4}]`. A message has 13 bytes besides: its version, a
checksum, and the key of the random bits.
"""

MEANINGS = {  # for settings whose comment in the code would only repeat the name
    "alpha": "of the Dirichlet distribution",
    "architecture": "the classifier's name",
    "augment": "random changes to training images: [augmentations](#augmentations)",
    "beta1": "of the first moment",
    "beta2": "of the second moment (`adam`, `yogi`)",
    "blocks": "number of blocks; each halves the side",
    "channels": "1: greyscale, 3: colour",
    "delimiter": "the character that separates columns",
    "fit": "`stretch` ignores the aspect ratio, `crop` fits the shorter side and cuts out the "
    "centre, `pad` fits the longer side and adds black borders",
    "image_column": "the column with the images",
    "kind": "the corruption",
    "label_column": "the column with the labels",
    "label_smoothing": "of the training loss",
    "law": "distribution of the sites' sizes",
    "lr": "local learning rate",
    "momentum": "of the server's velocity",
    "mu": "weight of the proximal term; 0 is FedAvg",
    "path": "the folder or file",
    "path_column": "the column with the images' paths",
    "precision": "of local training; bfloat16 rounds more coarsely, so figures differ slightly",
    "rounds": "number of rounds",
    "server": "the server's optimiser",
    "server_lr": "the server's learning rate",
    "site_column": "the column with the site names",
    "site_std": "likewise, the standard deviations",
    "sites": "number of sites",
    "split_column": "the column with `train` or `test`",
    "strength": "at the last site, see above",
    "test_images": "file with the test images",
    "test_labels": "file with the test labels",
    "test_part": "name of the test part",
    "train_images": "file with the training images",
    "train_labels": "file with the training labels",
    "train_part": "name of the training part",
    "weight_decay": "of the local optimiser",
    "weighting": "weight of an update: its site's number of images, or 1",
    "width": "channels of the first block",
}


def reference() -> str:
    """The whole page."""
    blocks = [
        INTRO,
        "## Commands\n",
        COMMANDS,
        *_commands(app, "fedsight"),
        "## Exit codes\n",
        "An error is one message with cause and cure; the exit code gives its family. Two codes "
        "are answers: `fedsight faces verify` ends with 10 if the image does not show the person, "
        "and `fedsight doctor` with 1 if something keeps FedSight from working. `fedsight sweep` "
        "ends with 1 if any of its runs failed, whatever the reason.\n",
        _exit_codes(),
        "## Configuration\n",
        CONFIGURATION,
        f"```toml\n{EXAMPLE.read_text(encoding='utf-8')}```\n",
        *_sections(),
        *_registry("Data sources", "data", sources, (Source, SizedSource)),
        *_registry("Splits", "split", splits, (Split,)),
        *_registry("Models", "model", models, (Model,)),
        *_registry("Adapters", "adapter", adapters, (LayerAdapter,)),
        *_registry("Tasks", "task", tasks, ()),
        *_registry("Metrics", "task.metrics", metrics, ()),
        *_registry("Augmentations", "train.augment", augmentations, ()),
        *_registry("Algorithms", "algorithm", algorithms, ()),
        *_registry("Mechanisms", "privacy", mechanisms, (Protected,)),
        *_registry("Codecs", "codec.up.steps", codecs, ()),
        *_others(),
        "## Run folder\n",
        *_run_folder(),
        "## A site's file\n",
        *_site(),
        "## Metrics\n",
        *_metrics(),
    ]
    return "\n".join(blocks)


def shipped(registry: Registry[Any]) -> list[str]:
    """The parts of this package: a process may have registered others."""
    names = registry.names()
    return [name for name in names if registry.get(name).__module__.startswith("fedsight.")]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


# Commands


def _commands(group: typer.Typer, path: str) -> Iterator[str]:
    made: Any = typer.main.get_group(group)
    for command in group.registered_commands:
        if command.callback is not None and command.name is not None:
            flags = {item.name: item.opts for item in made.commands[command.name].params}
            yield from _command(f"{path} {command.name}", command.callback, flags)
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from _commands(inner.typer_instance, f"{path} {inner.name}")


def _command(path: str, callback: Callable[..., Any], flags: dict[str, list[str]]) -> Iterator[str]:
    arguments, options = [], []
    hints = typing.get_type_hints(callback, include_extras=True)
    for name, parameter in inspect.signature(callback).parameters.items():
        kind, info = typing.get_args(hints[name])
        kind, _ = _optional(kind)
        if isinstance(info, ArgumentInfo):
            shown = info.metavar or name.upper()
            arguments.append((shown, info.help or ""))
        elif isinstance(info, OptionInfo):
            flag = ", ".join(flags[name])
            value = "" if kind is bool else f" {info.metavar or _placeholder(kind)}"
            text = info.help or ""
            if info.show_default and parameter.default not in (None, False):
                text += f" [default: {_plain(parameter.default)}]"
            options.append((f"`{flag}{value}`", text))
    text, _, sample = inspect.getdoc(callback).partition("Example: ")  # type: ignore[union-attr]
    usage = " ".join([path, *(shown for shown, _ in arguments), "[OPTIONS]" if options else ""])
    yield f"### {path}\n"
    yield f"`{usage.strip()}`\n"
    yield f"{text.strip()}\n"
    if sample:
        yield f"```console\n$ {sample.strip()}\n```\n"
    if arguments:
        rows = ((f"`{shown}`", text) for shown, text in arguments)
        yield _table(("argument", "meaning"), rows)
    if options:
        yield _table(("option", "meaning"), options)


def _placeholder(kind: Any) -> str:
    if typing.get_origin(kind) is list:
        kind = typing.get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(item.value) for item in kind)
    return {int: "N", float: "X", Path: "PATH", str: "TEXT"}[kind]


def _plain(value: Any) -> str:
    return str(value.value) if isinstance(value, Enum) else str(value)


# Exit codes


def _exit_codes() -> str:
    rows = [("0", "", "Success; `check` found no problem.")]
    errors: list[type[FedSightError]] = [
        FedSightError,
        *sorted(FedSightError.__subclasses__(), key=_code),
    ]
    for error in errors:
        if error.__module__ == FedSightError.__module__:
            about = (inspect.getdoc(error) or "").split("\n")[0]
            rows.append((str(error.exit_code), f"`{error.__name__}`", about))
    rows[1] = ("1", "`FedSightError`", "Any other error.")
    rows.insert(3, ("2", "", "Invalid command line: an unknown command or option."))
    return _table(("code", "error", "meaning"), rows)


def _code(error: type[FedSightError]) -> int:
    return error.exit_code


# Settings


def _sections() -> Iterator[str]:
    yield "### Top level\n"
    top = [
        ("`name`", "text", "the file's name", "name of the run and of its folder"),
        (
            "`seed`",
            "whole number",
            "`0`",
            "seed of all randomness: weights, splits, cohorts, batches",
        ),
    ]
    yield _table(("key", "type", "default", "meaning"), top)
    yield "Each of these sections selects a part by `name`; its other settings are the part's:\n"
    rows = []
    for section, kind in SECTIONS.items():
        if isinstance(kind, tuple):
            registry, default = kind
            title = _title(section)
            known = ", ".join(f"`{name}`" for name in shipped(registry))
            usual = f"`{default}`" if default else "none" if section in OPTIONAL else "required"
            link = f"[{title}](#{title.replace(' ', '-')})"
            rows.append((f"`[{section}]`", usual, f"{known}; see {link}"))
    yield _table(("section", "default of `name`", "known names"), rows)
    plain = {
        "train": Train,
        "rounds": Rounds,
        "timing": Timing,
        "shift": Shift,
        "public": Public,
        "secure": Secure,
        "codec": Codecs,
        "codec.up": Up,
        "codec.down": Down,
        "trust": Trust,
        "speed": Speed,
    }
    for section, cls in plain.items():
        assert "." in section or SECTIONS[section] is cls
        yield f"### [{section}]\n"
        yield f"{_about(cls)}\n"
        yield _fields(cls, frozenset(one.removeprefix(f"{section}.") for one in plain))


def _title(section: str) -> str:
    """The heading of the parts that a section selects from, in lower case."""
    named = {
        "data": "data sources",
        "start": "algorithms",
        "finish": "algorithms",
        "privacy": "mechanisms",
        "aggregation": "aggregators",
        "participation": "ways to take part",
    }
    return named.get(section, f"{section}s")


def _others() -> Iterator[str]:
    """The sections that `reference` does not place itself."""
    placed = (sources, splits, models, adapters, tasks, algorithms, mechanisms, codecs)
    for section, kind in SECTIONS.items():
        if isinstance(kind, tuple) and kind[0] not in placed:
            yield from _registry(_title(section).capitalize(), section, kind[0], ())


def _registry(
    title: str, section: str, registry: Registry[Any], bases: tuple[type[Settings], ...]
) -> Iterator[str]:
    yield f"## {title}\n"
    place, _, key = section.rpartition(".") if "." in section else (section, "", "")
    how = f"selected by name in the list `{key}`" if key else "selected by `name`"
    yield f"`[{place}]`, {how}.\n"
    if registry is augmentations:
        yield MIXED_LIST
    if registry is codecs:
        yield STEPS
    common: set[str] = set()
    heads = {
        Source: "Every source has these settings:",
        SizedSource: "Sources of images of any size also have these:",
        Split: "Every split has this setting:",
        Model: "Every model has these settings:",
        Protected: "All except `none` have these settings:",
        LayerAdapter: "All except `none` have these settings:",
    }
    for base in bases:
        yield f"{heads[base]}\n"
        yield _fields(base, leave_out=frozenset(common))
        common |= set(base.model_fields)
    for name in shipped(registry):
        cls = registry.get(name)
        yield f"### {name}\n"
        yield f"{_about(cls)}\n"
        facts = {key: text for key, text in registry.facts(name).items() if key != "about"}
        if facts:
            yield "".join(f"- {key}: {text}\n" for key, text in facts.items())
        if issubclass(cls, SizedSource):
            yield "Also has the settings of sources of images of any size.\n"
        own = frozenset(key for key in cls.model_fields if key not in common)
        if own:
            yield _fields(cls, leave_out=frozenset(cls.model_fields) - own)


def _about(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def _fields(cls: type[Settings], leave_out: frozenset[str] = frozenset()) -> str:
    rows = []
    for name, field in cls.model_fields.items():
        if name not in leave_out:
            kind, _ = _optional(field.annotation)
            meaning = _meaning(cls, name)
            row = (f"`{name}`", _kind(kind, field.metadata), _default(field), meaning)
            rows.append(row)
    return _table(("key", "type", "default", "meaning"), rows)


def _optional(kind: Any) -> tuple[Any, bool]:
    """A type without None, and whether None was allowed."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, False
    left = [part for part in typing.get_args(kind) if part is not type(None)]
    return typing.Union[tuple(left)], len(left) < len(typing.get_args(kind))  # noqa: UP007


def _kind(kind: Any, metadata: Iterable[Any] = ()) -> str:
    """A type and its limits in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        written = [part.words for part in parts[1:] if isinstance(part, Form)]
        if written:
            return written[0]
        inner = [item for part in parts[1:] for item in getattr(part, "metadata", [part])]
        return _kind(parts[0], [*inner, *metadata])
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_kind(part) for part in parts)
    if origin is typing.Literal:
        return " or ".join(f"`{json.dumps(part)}`" for part in parts)
    if origin is tuple:
        many = parts[-1] is Ellipsis
        items = [parts[0]] if many else list(parts)
        if not many and len(set(items)) == 1:
            return f"list of {len(items)} of: {_kind(items[0])}"
        return "list of " + ", ".join(_kind(item) for item in items)
    if isinstance(kind, type) and issubclass(kind, Settings):
        return "name or table" if issubclass(kind, Augmentation) else "table"
    names = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
    return names.get(kind, "path") + _limits(metadata)


def _limits(metadata: Iterable[Any]) -> str:
    words = {
        "ge": "at least {}",
        "gt": "above {}",
        "le": "at most {}",
        "lt": "below {}",
        "multiple_of": "a multiple of {}",
    }
    found = [
        words[key].format(f"{value:,g}" if value < 1 else f"{value:,.10g}")
        for item in metadata
        for key in words
        if (value := getattr(item, key, None)) is not None
    ]
    return "".join(f", {limit}" for limit in found)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "not set"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(value)}`"


def _meaning(cls: type, name: str) -> str:
    """The comment beside or directly above the field's definition, else the entry in MEANINGS."""
    for owner in cls.__mro__:
        if issubclass(owner, Settings) and name in inspect.get_annotations(owner):
            found = _comments(owner).get(name, "")
            if found:
                return found.replace("None:", "not set:")
    if name not in MEANINGS:
        where = f"{cls.__module__}.{cls.__name__}.{name}"
        raise SystemExit(f"tools/make_reference.py: {where} needs a comment, or a line in MEANINGS")
    return MEANINGS[name]


@cache
def _comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    comments: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type")):
            comments[token.start[0]] = token.string.removeprefix("#").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    found = {}
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.lineno - 1
            text = comments.get(node.end_lineno or node.lineno)
            if text is None:
                lines = []
                while above in alone:
                    lines.insert(0, comments[above])
                    above -= 1
                text = " ".join(lines)
            if text:
                found[node.target.id] = text
    return found


# The run folder


def _run_folder() -> Iterator[str]:
    known = {"run.toml", "run.json", "memory/", "delivered/", f"{store.EARLIER}K/"}
    known |= set(store.WRITTEN)
    if known != set(RUN_FILES):
        odd = sorted(known ^ set(RUN_FILES))
        raise SystemExit(
            f"tools/make_reference.py: RUN_FILES and coordinator/store.py differ: {odd}"
        )
    yield (
        "`--out DIR`, or `runs/NAME` (`runs/NAME-2` and so on if that exists). Files are written "
        "whole or not at all; `fedsight resume` needs nothing else.\n"
    )
    yield _table(("file", "contains"), [(f"`{file}`", text) for file, text in RUN_FILES.items()])
    yield "A line of `history.jsonl`:\n"
    yield _table(("key", "meaning"), [(f"`{key}`", text) for key, text in HISTORY.items()])
    yield "`summary.json`:\n"
    yield _table(("key", "meaning"), [(f"`{key}`", text) for key, text in SUMMARY.items()])
    yield (
        "Runs on a federation also have these files, and in `run.json` the sites' declarations, "
        "the `packages` (version and SHA-256) of FedSight that the run had, with the round after "
        "which each began, and, with `algorithm.earlier`, those of the sites in the earlier sums; "
        "with the codec `auto` the measured `lines`:\n"
    )
    yield _table(
        ("file", "contains"), [(f"`{file}`", text) for file, text in DEPLOYED_FILES.items()]
    )
    yield "`--seeds N` makes a folder of runs, `runs/NAME-seeds` unless `--out` says another:\n"
    yield _table(("file", "contains"), [(f"`{file}`", text) for file, text in SERIES_FILES.items()])
    yield "`fedsight sweep` makes one too, `runs/NAME-sweep` unless `--out` says another:\n"
    yield _table(("file", "contains"), [(f"`{file}`", text) for file, text in SWEEP_FILES.items()])


# A site's folder


def _site() -> Iterator[str]:
    yield SITE
    for section, cls in (
        ("contract", Contract),
        ("secure", SecAggLimits),
        ("delivery", DeliverySettings),
        ("keep", SiteKeep),
        ("speed", SpeedSettings),
        ("monitoring", MonitoringSettings),
        ("hooks", HookSettings),
    ):
        yield f"### A site's [{section}]\n"
        yield f"{_about(cls)}\n"
        yield _fields(cls)
    yield "Files in the site's folder:\n"
    yield _table(("file", "contains"), [(f"`{file}`", text) for file, text in SITE_FILES.items()])


# What is watched


def _metrics() -> Iterator[str]:
    yield (
        "With `--metrics PORT`, at `/metrics`: see [monitor a "
        "federation](../how-to/monitor-a-federation.md). `[monitoring]` and `[hooks]` of a server "
        "are in `server.toml`, in the federation's folder, and have the [settings of a "
        "site's](#a-sites-monitoring).\n"
    )
    rows = [
        (
            f"`{prefix(side)}{name}`",
            metric.kind,
            f"`{metric.label}`" if metric.label else "–",
            metric.text,
        )
        for side, metrics in METRICS.items()
        for name, metric in metrics.items()
    ]
    yield _table(("metric", "kind", "label", "is"), rows)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    COMPATIBILITY.write_text(compatibility.page(), encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(ROOT)}")
