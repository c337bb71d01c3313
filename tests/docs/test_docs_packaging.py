"""What `deploy/` ships: image, compose file, Helm chart and systemd units start what they say, with
no more rights than they need. `make chart-check` runs Helm itself over the chart.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from docpages import ROOT, accept, blocks, text, typed

import fedsight

SERVICES, CONTAINERS = "docs/how-to/deploy-a-federation.md", "docs/how-to/run-in-containers.md"
CHART = "deploy/helm/fedsight"
UNITS = ("deploy/systemd/fedsight-server@.service", "deploy/systemd/fedsight-site@.service")
ANALYSER = shutil.which("systemd-analyze")
MOST_EXPOSED = 2.5  # as `systemd-analyze security` counts; 0 is the least, 10 the most
INSTRUCTIONS = {
    *("ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "VOLUME", "USER", "EXPOSE"),
    *("STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
}


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage of the Containerfile, and before them those before any."""
    joined = re.sub(r"\\\n\s*", "", text("deploy/Containerfile"))
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    found: list[list[tuple[str, str]]] = [[]]
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "FROM":
            found.append([])
        found[-1].append((kind, rest))
    return found


def test_the_image_is_built_in_one_stage_and_run_in_another() -> None:
    before, build, run = stages()
    assert {kind for stage in (before, build, run) for kind, _ in stage} <= INSTRUCTIONS
    assert before == [("ARG", "PYTHON=python:3.11-slim-bookworm")]
    assert build[0] == ("FROM", "${PYTHON} AS build")
    assert run[0] == ("FROM", "${PYTHON}")
    copied = " ".join(rest for kind, rest in build if kind == "COPY").split()
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= set(copied)
    kept = {line.removeprefix("!") for line in text(".dockerignore").splitlines()}
    for kind, rest in build:
        for name in rest.split()[:-1] if kind == "COPY" else ():
            assert (ROOT / name).exists(), name
            assert name in kept, f"{name} is not sent to the engine"
    installs = [rest for kind, rest in build if kind == "RUN"]
    assert all("-c constraints.txt" in part for part in re.findall(r"install.*?&&", installs[0]))
    (extras,) = [rest for kind, rest in build if kind == "ARG"]
    named = extras.removeprefix("EXTRAS=").split(",")
    assert "deploy" in named
    assert set(named) <= set(project["optional-dependencies"])


def test_the_image_runs_as_a_user_by_number_and_says_whether_it_is_well() -> None:
    run = stages()[-1]
    last: dict[str, str] = dict(run)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    kinds = [kind for kind, _ in run]
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    _, command = last["HEALTHCHECK"].split(" CMD ")
    program, *words = json.loads(command)
    assert program == "fedsight"
    accept(words)
    assert json.loads(last["ENTRYPOINT"]) == ["fedsight"]
    assert "pip uninstall" in last["RUN"]
    default = accept(["federation", "init", "hospitals"])["port"]
    assert last["EXPOSE"] == str(default)


def test_the_compose_file_starts_what_the_image_holds() -> None:
    table = yaml.safe_load(text("deploy/compose.yaml"))
    # docker-compose 1.29 refuses any other, as `name`, which Compose v2 knows
    assert all(key == "services" or key.startswith("x-") for key in table)
    assert set(table["services"]) == {"server", "site"}
    user = dict(stages()[-1])["USER"]
    for name, service in table["services"].items():
        assert accept(service["command"])["log"] == "json"  # names no image, and counts none
        assert service["command"][0] == name
        assert service["restart"] == "unless-stopped"
        build = ROOT / "deploy" / service["build"]["context"]
        assert (build / service["build"]["dockerfile"]).is_file()
        assert any(volume.split(":")[1] == "/data" for volume in service["volumes"])
        assert service["user"] == user
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
        kind, program, *words = service["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "fedsight")
        assert str(accept(words)["folder"]) == service["command"][-1]
    (port,) = table["services"]["server"]["ports"]
    assert "ports" not in table["services"]["site"]  # nothing connects to a site
    default = accept(["federation", "init", "hospitals"])["port"]
    assert port == f"{default}:{default}"


# Helm ---------------------------------------------------------------------------------------------


def test_every_value_of_the_chart_is_used_known_and_of_the_right_form() -> None:
    values = yaml.safe_load(text(f"{CHART}/values.yaml"))
    schema = json.loads(text(f"{CHART}/values.schema.json"))
    templates = sorted((ROOT / CHART / "templates").iterdir())
    whole = "\n".join(path.read_text() for path in templates)
    whole = whole.replace("$server.", ".Values.server.").replace("$site.", ".Values.site.")
    used = set(re.findall(r"\.Values\.([\w.]+)", whole))
    open_ends = ("resources", "nodeSelector", "tolerations", "images", "from", "annotations")

    def walk(value: Any, known: dict[str, Any], path: str) -> None:
        known = schema["definitions"].get(known.get("$ref", "").rpartition("/")[2], known)
        if isinstance(value, dict) and path.rpartition(".")[2] not in open_ends:
            assert set(value) <= set(known["properties"]), path
            assert known["additionalProperties"] is False, path
            for key, inner in value.items():
                walk(inner, known["properties"][key], f"{path}.{key}".lstrip("."))
            return
        if "storage" not in path:  # handed on as a whole
            assert path in used, f"{path} is not used"
        if pattern := known.get("pattern"):
            assert re.search(pattern, str(value)), path

    walk(values, schema, "")
    for path in used:  # a value that a template asks for and nobody can give
        found = values
        for key in path.split("."):
            found = found[key]


def test_the_chart_starts_what_the_image_holds() -> None:
    chart = yaml.safe_load(text(f"{CHART}/Chart.yaml"))
    assert chart["appVersion"] == chart["version"] == fedsight.__version__
    helpers = text(f"{CHART}/templates/_helpers.tpl")
    user, group = dict(stages()[-1])["USER"].split(":")
    assert f"runAsUser: {user}\n" in helpers
    assert f"runAsGroup: {group}\n" in helpers
    for side, words in (
        ("server", ["server", "start", "--log", "json", "--federation", "/data/x"]),
        (
            "site",
            ["site", "start", "--log", "json", "/data/x", "--contract", "/settings/site.toml"],
        ),
    ):
        assert accept(words)["log"] == "json"  # names no image, and counts none
        template = text(f"{CHART}/templates/{side}.yaml")
        assert "\n  podManagementPolicy: Parallel\n" in template, "or an upgrade waits for ever"
        assert all(word in template for word in words if "/data" not in word)
        (start,) = re.findall(r"^ *args:(.*(?:\n +- .*)*)", template, re.MULTILINE)
        said = re.sub(r"[\[\],\s-]+", " ", start)
        assert f" {side} start log json " in said, start
    for command in re.findall(r"command: \[fedsight, (.+)\]", helpers):
        accept([re.sub(r"\{\{.*?\}\}", "/data/x", word) for word in command.split(", ")])
    values = yaml.safe_load(text(f"{CHART}/values.yaml"))
    assert values["server"]["port"] == accept(["federation", "init", "hospitals"])["port"]


# systemd ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_its_side_and_keeps_it_running(name: str) -> None:
    service = unit(name)["Service"]
    side = name.rpartition("-")[2].partition("@")[0]
    program, *words = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/fedsight")
    accept(words)
    assert words[0] == side
    assert service["Restart"] == "always"
    assert service["OOMPolicy"] == "continue"  # FedSight replaces a trainer that was killed
    # oneDNN compiles its kernels while it runs: with this, PyTorch computes no convolution.
    assert "MemoryDenyWriteExecute" not in service
    first, second = ({**unit(one)["Service"], "ExecStart": ""} for one in UNITS)
    assert first == second
    assert f"fedsight-{side}@" in text(SERVICES)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_has_few_rights(name: str) -> None:
    service = unit(name)["Service"]
    assert service["User"] == "fedsight"
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
    assert service["ProtectSystem"] == "strict"
    for key in (
        *("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "PrivateUsers", "ProtectHome"),
        *("ProtectClock", "ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs"),
        *("ProtectKernelModules", "ProtectKernelTunables", "LockPersonality", "RemoveIPC"),
        *("RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"),
    ):
        assert service[key] == "yes", key
    assert service["RestrictAddressFamilies"] == "AF_UNIX AF_INET AF_INET6"


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.skipif(ANALYSER is None, reason="systemd-analyze is not installed")
def test_systemd_counts_few_rights_of_a_unit(name: str, tmp_path: Path) -> None:
    copy = tmp_path / Path(name).name.replace("@", "@x")
    shutil.copy(ROOT / name, copy)
    words = [str(ANALYSER), "security", "--offline=true", "--no-pager", str(copy)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    level = re.search(r"Overall exposure level.*?: (\d+\.\d+)", said)
    assert level is not None, said
    assert float(level[1]) <= MOST_EXPOSED


def unit(name: str) -> configparser.ConfigParser:
    """A unit file. A key that is given twice adds to a list; here the last one counts."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text(name))
    return parser


def test_every_command_of_the_page_on_containers_parses() -> None:
    for words in typed(CONTAINERS):
        accept(words)
    for line in "".join(blocks(CONTAINERS, "bash")).replace("\\\n", " ").splitlines():
        for inner in re.findall(r"(?:-- |exec server |--rm \w+ )(?:fedsight )?(.+)$", line):
            accept(shlex.split(inner))
