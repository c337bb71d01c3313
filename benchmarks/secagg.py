"""What secure aggregation costs: masks, bytes, a whole round of 100 clients, and the main job.

    python benchmarks/secagg.py [--quick]

One core, but for the main job, which has a worker for each. Formulas stand beside the figures:
a client makes k + 1 masks of d values at 0.7 ns each (64 bits: twice that); the coordinator takes
off one for each survivor and one for each survivor that a drop-out is a neighbour of.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import RESULTS, await_quiet, machine, print_table, spread, write_json

from fedsight.privacy.secagg import messages, pack
from fedsight.privacy.secagg.client import Minimums, SecAggClient
from fedsight.privacy.secagg.consistency import (
    confirming,
    inbox_part,
    lists_part,
    objection,
    pick,
    unproven,
)
from fedsight.privacy.secagg.graph import parameters
from fedsight.privacy.secagg.keys import SIGNATURE, Identity, signed
from fedsight.privacy.secagg.masks import Masker
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.server import SecAggServer
from fedsight.privacy.secure import Secure

PER_VALUE = 0.7e-9  # seconds: a value of a mask, on one core, as the plan states it


def timed(do: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    began = time.perf_counter()
    found = do()
    return time.perf_counter() - began, found


def masking(lengths: list[int], counts: list[int], repeats: int) -> list[dict[str, Any]]:
    """Seconds to add k + 1 masks to a vector of d values, modulo 2^32 and modulo 2^64."""
    rows = []
    none = np.zeros(0, np.uint32)
    for bits, length, k in itertools.product((32, 64), lengths, counts):
        pairs = [(secrets.token_bytes(32), bool(n % 2)) for n in range(k)]
        masker = Masker(secrets.token_bytes(32), pairs)
        words = np.zeros(length, f"u{bits // 8}")
        given = (words,) if bits == 32 else (none, words)
        masker.mask(*given)
        seconds = [timed(partial(masker.mask, *given))[0] for _ in range(repeats)]
        formula = (k + 1) * PER_VALUE * length * bits / 32
        rows.append({"bits": bits, "d": length, "k": k, "seconds": seconds, "formula": formula})
    return rows


class Round:
    """Keys of a round of `sites`, and what each side sent and received, in bytes and seconds."""

    def __init__(self, sites: int, secure: Secure, length: int) -> None:
        self.secure = secure
        self.quantiser = secure.quantiser({"delta": length}, sites, 1, 0.1)
        given = secure.parameters(sites)
        known = [Identity.fresh() for _ in range(sites)]
        roster = tuple((f"site-{n}", one.public.hex()) for n, one in enumerate(known))
        table = self.quantiser.table()
        self.binding = Binding(
            "bench", "program", "", 1, 1, "order", roster, (0,) * sites, given, table
        )
        self.server = SecAggServer(self.binding)
        least = Minimums().at_least(given)
        self.clients = [SecAggClient(one, self.binding, n, least) for n, one in enumerate(known)]
        self.up: list[int] = [0] * sites
        self.down: list[int] = [len(self.binding.data)] * sites
        self.seconds: dict[str, list[float]] = {}
        self.coordinator: dict[str, float] = {}

    def exchange(self) -> list[Masker]:
        """Phases 0 to 2, of all sites."""
        self._phase("keys", lambda c: c.advertise(), self.server.advert)
        self._phase("shares", lambda c, m: c.share(m), self.server.share, self.server.adverts)
        self._phase("confirm", lambda c, m: c.confirm(m), self.server.confirm, self.server.inbox)
        return [client.masker() for client in self.clients]

    def unmask(self, survivors: list[int], total: Any) -> None:
        """Phases 4 and 5."""
        lists = self.server.lists(survivors)
        self._phase(
            *("agree", lambda c, m: c.agree(m), self.server.agree, lambda n: lists),
            numbers=self.server.committee,
        )
        self._phase(
            *("unmask", lambda c, m: c.unmask(m), self.server.answer, self.server.request),
            numbers=survivors,
        )
        self.coordinator["take masks off"] = timed(lambda: self.server.unmask(total))[0]

    def _phase(
        self,
        name: str,
        answer: Callable[..., bytes],
        take: Callable[[int, bytes], None],
        ask: Callable[[int], bytes] | None = None,
        numbers: list[int] | None = None,
    ) -> None:
        seconds, mine = [], 0.0
        for n in range(len(self.clients)) if numbers is None else numbers:
            question: tuple[bytes, ...] = ()
            if ask is not None:
                took, message = timed(partial(ask, n))
                mine, question = mine + took, (message,)
                self.down[n] += len(message)
            signed.cache_clear()  # sites do not share what they have verified
            took, said = timed(partial(answer, self.clients[n], *question))
            seconds.append(took)
            self.up[n] += len(said)
            mine += timed(partial(take, n, said))[0]
        self.seconds[name] = seconds
        self.coordinator[name] = mine


def upload(sites: int, length: int) -> dict[str, Any]:
    """Bytes that a client sends, all phases together, beside 16 bits for each value."""
    made = Round(sites, Secure(name="secagg", bits=16), length)
    made.exchange()
    made.unmask(list(range(sites)), np.zeros(0, np.uint32))
    packed, modulus = pack.size(length, made.quantiser.modulus), made.quantiser.modulus
    keys, plain = int(median(made.up)), pack.size(length, 16)
    return {
        **{"clients": sites, "d": length, "neighbours": made.binding.parameters.neighbours},
        **{"modulus_bits": modulus, "masked_bytes": packed, "key_bytes": keys},
        **{"plain_bytes": plain, "ratio": (packed + keys) / plain, "asked": 1.73},
    }


def whole_round(sites: int, length: int) -> dict[str, Any]:
    """A real round: all keys and masked updates; a tenth of the sites gone before they sent one."""
    made = Round(sites, Secure(name="secagg"), length)
    maskers = made.exchange()
    gone = sites // 10
    survivors, how = list(range(gone, sites)), made.quantiser
    total, plain = np.zeros(length, np.uint32), np.zeros(length, np.uint32)
    update = {"delta": torch.empty(length).uniform_(-0.1, 0.1, generator=torch.Generator())}
    parts: dict[str, list[float]] = {"quantise": [], "mask": [], "pack": []}
    adding = []
    for n in survivors:
        took, words = timed(partial(how.encode, update, 1, f"site-{n}", 0, 1))
        parts["quantise"].append(took)
        plain += words
        parts["mask"].append(timed(partial(maskers[n].mask, words))[0])
        took, data = timed(partial(pack.pack, words, how.modulus))
        parts["pack"].append(took)
        made.up[n] += len(data)

        def add(data: bytes = data) -> None:
            np.add(total, pack.unpack(data, length, how.modulus), out=total)

        adding.append(timed(add)[0])
    made.unmask(survivors, total)
    parameters_, k = made.binding.parameters, made.binding.parameters.neighbours
    left = len(survivors)
    off = left + gone * left  # of a complete graph
    return {
        **{"clients": sites, "d": length, "dropped": gone, "neighbours": k},
        "threshold": parameters_.threshold,
        "exact": hashlib.sha256(total.data).digest() == hashlib.sha256(plain.data).digest(),
        "client_seconds": {**{n: median(s) for n, s in {**made.seconds, **parts}.items()}},
        "client_mask_formula": (k + 1) * PER_VALUE * length,
        "coordinator_seconds": {**made.coordinator, "add": sum(adding)},
        "coordinator_unmask_formula": off * PER_VALUE * length,
        "client_bytes_up": int(median(made.up[n] for n in survivors)),
        "client_bytes_up_formula": how.modulus * length // 8
        + k * (messages.NUMBER + messages.SEALED)
        + (k + 1) * (messages.NUMBER + messages.KIND + 33),
        "client_bytes_down_keys": int(median(made.down)),
    }


def consistency_round(sites: int, repeats: int) -> dict[str, Any]:
    """What agreeing on the lists costs one member of the committee: seconds, and bytes."""
    given = Secure(name="secagg").parameters(sites)
    known = [Identity.fresh() for _ in range(sites)]
    roster = tuple((f"site-{n}", one.public.hex()) for n, one in enumerate(known))
    binding = Binding("bench", "program", "", 1, 1, "order", roster, (0,) * sites, given, {})
    number, graph = min(binding.committee), binding.graph
    everybody = frozenset(range(sites))
    lists = messages.Lists(everybody, frozenset())
    content = lists_part(binding, lists)
    agreed = pick({n: known[n].sign(content) for n in binding.committee}, given.signatures)
    near = {
        n: known[n].sign(inbox_part(binding, n, set(graph.of(n))))
        for n in confirming(binding, number, lists)
    }
    request = messages.write_unmask(binding, lists, messages.Proof(agreed, near))
    asked, inbox = messages.write_lists(binding, lists), set(graph.of(number))

    def confirm() -> None:
        known[number].sign(inbox_part(binding, number, inbox))

    def agree() -> None:
        told = messages.read_lists(binding, asked)
        assert not objection(binding, number, inbox, told)
        known[number].sign(lists_part(binding, told))

    def verify() -> None:
        signed.cache_clear()
        told, proof = messages.read_unmask(binding, request)
        assert not objection(binding, number, inbox, told)
        assert not unproven(binding, number, told, proof)

    steps = {"confirm": confirm, "agree": agree, "verify": verify}
    seconds = {name: [timed(step)[0] for _ in range(repeats)] for name, step in steps.items()}
    record = messages.NUMBER + SIGNATURE
    head = messages.MARK + messages.DIGEST + 2 * ((sites + 7) // 8)
    return {
        **{"clients": sites, "neighbours": given.neighbours, "committee": given.committee},
        **{"signatures": given.signatures, "seconds": seconds},
        "bytes_up": 2 * (messages.MARK + messages.DIGEST + record),
        "bytes_down": len(asked) + len(request),
        "bytes_down_formula": 2 * head + record * (given.signatures + len(near)),
    }


def main_job(repeats: int, rounds: int | None) -> dict[str, Any]:
    """Seconds of `fedsight run --example fashion`, plain and with secure aggregation, in turn."""
    found: dict[str, list[float]] = {"none": [], "quantised": [], "secagg": []}
    accuracy: dict[str, float] = {}
    code = "from fedsight.cli import main; main()"
    with tempfile.TemporaryDirectory() as place:
        for turn in range(repeats):
            for name, seconds in found.items():
                out = Path(place) / f"{name}{turn}"
                words = ["run", "--example", "fashion", "--set", f"secure.name={name}"]
                if rounds is not None:
                    words += ["--rounds", str(rounds)]
                await_quiet(30)
                done = subprocess.run(
                    [sys.executable, "-c", code, *words, "--out", str(out)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
                summary = json.loads((out / "summary.json").read_text())
                seconds.append(summary["seconds"])
                accuracy[name] = summary["accuracy"]
    pairs = zip(found["secagg"], found["none"], strict=True)
    overhead = [secure / plain - 1 for secure, plain in pairs]
    return {
        **{"rounds": rounds, "seconds": found, "accuracy": accuracy},
        **{"overhead": overhead, "asked": 0.07},
    }


def show_masking(found: list[dict[str, Any]]) -> None:
    """Masks beside the formula."""
    rows = [
        [
            f"{row['d']:,} values of {row['bits']} bits x {row['k'] + 1} masks",
            spread([1e3 * s for s in row["seconds"]], 1),
            f"{1e3 * row['formula']:.1f}",
            f"{median(row['seconds']) / row['formula']:.2f}",
        ]
        for row in found
    ]
    print_table("Masking, one core", ["", "ms", "formula", "ratio (asked: 1.5)"], rows)


def show_upload(one: dict[str, Any]) -> None:
    """Bytes of a client beside the plain ones."""
    title = f"Upload of a client, {one['clients']:,} clients x {one['d']:,} values of 16 bits"
    cells = [f"{one[key]:,}" for key in ("masked_bytes", "key_bytes", "plain_bytes")]
    columns = ["", "masked", "keys", "plain", "ratio (asked: 1.73)"]
    print_table(title, columns, [["bytes", *cells, f"{one['ratio']:.3f}"]])


def show_round(one: dict[str, Any]) -> None:
    """Both sides of a round beside the formulas."""
    title = f"A round: {one['clients']} clients x {one['d']:,}, {one['dropped']} dropped out"
    client, server = one["client_seconds"], one["coordinator_seconds"]
    formulas = {
        "mask": one["client_mask_formula"],
        "take masks off": one["coordinator_unmask_formula"],
    }
    names = dict.fromkeys([*client, *server])
    rows = [
        [
            name,
            f"{client[name]:.3f}" if name in client else "",
            f"{server[name]:.3f}" if name in server else "",
            f"{formulas[name]:.3f}" if name in formulas else "",
        ]
        for name in names
    ]
    rows.append(
        ["bytes up", f"{one['client_bytes_up']:,}", "", f"{one['client_bytes_up_formula']:,}"]
    )
    rows.append(["sum is exact", "", str(one["exact"]), ""])
    print_table(title, ["seconds", "a client", "coordinator", "formula"], rows)


def show_consistency(found: list[dict[str, Any]]) -> None:
    """The consistency round at each number of sites."""
    rows = [
        [
            f"{one['clients']:,}",
            *(f"{one[key]:,}" for key in ("neighbours", "committee", "signatures")),
            *(spread([1e3 * s for s in one["seconds"][step]], 2) for step in one["seconds"]),
            *(f"{one[key]:,}" for key in ("bytes_up", "bytes_down", "bytes_down_formula")),
        ]
        for one in found
    ]
    columns = ["sites", "k", "committee", "signatures", "confirm, ms", "agree, ms", "verify, ms"]
    columns += ["bytes up", "bytes down", "formula"]
    print_table("The consistency round, a member of the committee", columns, rows)


def show_main_job(one: dict[str, Any]) -> None:
    """A whole run with and without."""
    rows = [
        [name, spread(seconds), f"{one['accuracy'][name]:.4f}"]
        for name, seconds in one["seconds"].items()
    ]
    rows.append(["overhead (asked: 7 %)", f"{100 * median(one['overhead']):.1f} %", ""])
    print_table("The main job", ["secure.name", "seconds", "accuracy"], rows)


def main() -> None:
    sections: dict[str, tuple[Callable[[bool], Any], Callable[[Any], None]]] = {
        "masking": (
            lambda quick: masking(
                [1 << 20] if quick else [1 << 20, 10_000_000], [9, 99], 3 if quick else 7
            ),
            show_masking,
        ),
        "upload": (lambda quick: upload(128 if quick else 1024, 1 << 20), show_upload),
        "round": (
            lambda quick: whole_round(20, 1_000_000) if quick else whole_round(100, 10_000_000),
            show_round,
        ),
        "consistency": (
            lambda quick: [
                consistency_round(n, 3 if quick else 9)
                for n in ([100, 1_000] if quick else [100, 1_000, 10_000])
            ],
            show_consistency,
        ),
        "main_job": (
            lambda quick: main_job(1, 2) if quick else main_job(9, given.rounds),
            show_main_job,
        ),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--only", nargs="+", choices=list(sections), default=list(sections))
    parser.add_argument("--rounds", type=int, help="of the main job's nine pairs (default: all)")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    path = given.out or RESULTS / ("secagg-quick.json" if given.quick else "secagg.json")
    torch.set_num_threads(1)
    assert parameters(100, 0.1, 0.1, True).neighbours == 99
    patience = 0 if given.quick else 60
    facts = {"quick": given.quick, "machine": machine(), "others": await_quiet(patience)}
    found = {"measured": {}, **(json.loads(path.read_text()) if path.exists() else {})}
    for name in given.only:  # written one by one: the last takes minutes
        measure, show = sections[name]
        found[name] = measure(given.quick)
        found["measured"][name] = facts  # parts may be measured on different days
        show(found[name])
        write_json(path, found)


if __name__ == "__main__":
    main()
