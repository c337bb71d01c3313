"""Check the Helm chart: Helm's own lint, what it renders, and Kubernetes' schemas of that.

    python tools/check_chart.py

`make chart-check` runs it in an environment of its own, with packages that are large and not used
otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from helm_python import chart as helm

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "fedsight"
VERSIONS = ("1.25", "1.31", kubernetes_validate.latest_version())
SERVER = {"server": {"enabled": True}}
SITE = {"site": {"enabled": True}}
BOTH: dict[str, Any] = {
    "server": {
        "enabled": True,
        "from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}],
        "service": {"type": "LoadBalancer", "annotations": {"example.org/pass": "tcp"}},
        "nodeSelector": {"disk": "local"},
        "tolerations": [{"key": "fl", "operator": "Exists"}],
        "storage": {"size": "1Gi", "className": "local-path"},
        "metrics": {"port": 9464, "from": [{"namespaceSelector": {}}]},
        "hooks": {"cidrs": ["203.0.113.9/32"]},
    },
    "site": {
        "enabled": True,
        "settings": '[data]\nname = "folder"\npath = "/images"\n',
        "images": {"hostPath": {"path": "/srv/images"}},
        "runtimeClassName": "nvidia",
        "metrics": {"port": 9465},
        "hooks": {"cidrs": ["203.0.113.9/32"], "port": 8443},
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    },
    "image": {"repository": "example.org/fedsight", "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "key"}],
    "probes": {"startupFailures": 600},
}
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "server": SERVER,
    "site": SITE,
    "both": BOTH,
    "maintenance": {
        "server": {"enabled": True, "maintenance": True},
        "site": {"enabled": True, "maintenance": True},
        "networkPolicy": {"enabled": False},
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "unknown value": {"server": {"enable": True}},
    "port": {"server": {"port": 0}},
    "name": {"site": {"name": "../lyon"}},
    "digest": {"image": {"digest": "sha256:1"}},
    "host in upper case": {"server": {"host": "FL.example.org"}},
    "host that is an address": {"server": {"host": "203.0.113.7"}},
    "address": {"site": {"server": {"cidrs": ["fl.example.org"]}}},
}


def documents(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the chart renders with `values`."""
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        for name, text in chart.render(values, name="fl", namespace="fl").items():
            if name.endswith(".yaml"):
                yield from (one for one in yaml.safe_load_all(text) if one)


def problems() -> Iterator[str]:
    """Everything that is wrong."""
    for name, values in CASES.items():
        report = helm.lint(CHART, values, strict=True)
        yield from (f"{name}: {one['error']}" for one in report["messages"] if one["severity"] > 1)
        for document in documents(values):
            what = f"{name}: {document['kind']} {document['metadata']['name']}"
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    yield f"{what} ({version}): {error.message}"
            yield from (f"{what}: {why}" for why in (*_unsafe(document), *_stuck(document)))
    for name, values in REFUSED.items():
        try:
            list(documents(values))
        except helm_python.errors.HelmError:
            continue
        yield f"{name}: was not refused"


def _stuck(document: dict[str, Any]) -> Iterator[str]:
    """What would keep an upgrade from replacing a pod that is not ready."""
    parallel = document.get("spec", {}).get("podManagementPolicy") == "Parallel"
    if document["kind"] == "StatefulSet" and not parallel:
        yield "an upgrade would wait for a pod that is not ready"


def _unsafe(document: dict[str, Any]) -> Iterator[str]:
    """What the Pod Security Standard `restricted` forbids, and a root that can be written."""
    if document["kind"] != "StatefulSet":
        return
    pod = document["spec"]["template"]["spec"]
    security = pod["securityContext"]
    if not security["runAsNonRoot"] or security["seccompProfile"]["type"] != "RuntimeDefault":
        yield "it may run as root, or without seccomp"
    if pod["automountServiceAccountToken"]:
        yield "it gets a token of the cluster"
    for container in pod["containers"]:
        own = container["securityContext"]
        if (
            own["allowPrivilegeEscalation"]
            or own["privileged"]
            or own["capabilities"] != {"drop": ["ALL"]}
        ):
            yield "it has more rights than it needs"
        if not own["readOnlyRootFilesystem"]:
            yield "its root can be written"
        args = container.get("args")
        if args is not None and args[2:4] != ["--log", "json"]:
            yield "the log of its cluster gets what only the site's own log may hold"
        probes = {"startupProbe", "livenessProbe", "readinessProbe"}
        if (container.get("command") is None) != (probes <= container.keys()):
            yield "it has no probes, or has them in maintenance"


if __name__ == "__main__":
    found = list(problems())
    for one in found:
        print(one)
    print(f"{len(CASES)} cases, {len(REFUSED)} refused, {len(found)} problems")
    sys.exit(bool(found))
