"""A federation over a slow and lossy line: 2 Mbit/s, 200 ms there and back, 2 % of packets lost.

Server and site are in network namespaces of their own (`shaped.py`; it needs root). Shows how long
a round takes for a model of some millions of parameters, beside the time that the bytes alone would
take, and that nothing wedges when the line is cut in the middle.

    python benchmarks/slow_line.py --parameters 1 --rounds 2 --cut 20
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from common import RESULTS, machine, write_json
from shaped import HOST, SPACES, fedsight, line

from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.site.folder import SiteFolder
from fedsight.program import config
from fedsight.program.federation import federate

PORT = 8002
SAMPLE = "fashion-mnist-12k"


def sets_for(millions: float) -> tuple[list[str], int]:
    """The settings of a small CNN with about so many parameters, and how many it has."""
    width = 4 * round((millions * 1e6 / 378) ** 0.5 / 4)  # 378 w^2 + 99 w + 10 parameters
    sets = [f"model.width={width}", "model.blocks=4", "split.sites=10", "train.epochs=1"]
    program, _ = config.example("fashion", sets)
    return sets, federate(program).layout.size


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=25.0, help="millions")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cut", type=float, default=0.0, help="seconds that the line is cut")
    parser.add_argument("--mbit", type=float, default=2.0)
    parser.add_argument("--delay", type=float, default=200.0, help="ms there and back")
    parser.add_argument("--loss", type=float, default=2.0, help="percent of packets")
    parser.add_argument("--out", type=Path, default=RESULTS / "slow_line.json")
    asked = parser.parse_args()
    sets, size = sets_for(asked.parameters)
    alone = 2 * 32 * size / (asked.mbit * 1e6)
    print(f"{size:,} parameters: {4 * size / 1e6:.1f} MB each way, {alone:.0f} s at full rate")
    with tempfile.TemporaryDirectory(prefix="fedsight-") as scratch:
        root = Path(scratch)
        federation = FederationFolder.create(root / "slow", HOST, PORT)
        home = root / "site-00"
        federation.admit(SiteFolder.create(home, "site-00", federation.invitation))
        words = ["--federation", federation.folder]
        processes = []
        with line(asked.mbit, asked.delay, asked.loss) as shaped:
            try:
                processes.append(
                    fedsight(SPACES[0], federation.folder / "server", "server", "start", *words)
                )
                processes.append(fedsight(SPACES[1], home, "site", "start", home, "--data", SAMPLE))
                sets += [
                    "rounds.deadline=36000",
                    "rounds.validation=0",
                    f"rounds.rounds={asked.rounds}",
                    f"rounds.evaluate_every={asked.rounds}",
                ]
                more = [word for one in sets for word in ("--set", one)]
                began = time.time()
                run = fedsight(SPACES[0], root, "run", "--example", "fashion", *words, *more)
                processes.append(run)
                if asked.cut:
                    held = home / "log.jsonl"
                    while not held.is_file() or b"joined" not in held.read_bytes():
                        time.sleep(1)
                    time.sleep(alone / 4)  # in the middle of the way down
                    shaped.cut(asked.cut)
                code = run.wait()
                seconds = time.time() - began
                print((root / "said.txt").read_text()[-600:])
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.wait()
        history = federation.runs / "fashion" / "history.jsonl"
        lines = [json.loads(line) for line in history.read_text().splitlines()]
    rounds = [line["seconds"] for line in lines]
    print(f"exit code {code}; {seconds:.0f} s in all; rounds: {[round(s) for s in rounds]} s")
    facts = {"parameters": size, "mbit": asked.mbit, "delay_ms": asked.delay, "loss": asked.loss}
    facts |= {
        "cut_s": asked.cut,
        "full_rate_s": alone,
        "packets_lost": shaped.lost,
        "carried_bytes": shaped.carried,
        "rounds_s": rounds,
        "exit_code": code,
    }
    write_json(asked.out, {"machine": machine(), **facts})


if __name__ == "__main__":
    main()
