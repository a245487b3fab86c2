"""Train the same work with lorafit and with other projects on a CPU, and compare.

    python bench/throughput.py [--peers all] [--size 60m] [--rounds 5]
    python bench/throughput.py --quick

Every project lives in an environment of its own, made once from its pins (1 to 3 GB each). Rounds
are interleaved; the figures are medians, the comparisons medians of the ratios within a round. A
full run writes bench/results/throughput_cpu_<size>.json and .md; a shorter one leaves them in the
working folder.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from environments import Environment, ensure_environment, installed_versions
from peers.catalog import PEERS, Peer
from peers.commands import Start
from peers.measure import ON_ONE_CORE, RunError, measure, prepare
from peers.results import OURS, REFERENCE, STOCK, Outcome, document, failed, markdown, progress
from peers.roofline import frozen_flops_per_token
from peers.workload import SHAPES, Workload
from platformdirs import user_cache_path

from lorafit.files import sha256_of, write_json
from lorafit.hardware.detect import detect_device

BENCH = Path(__file__).absolute().parent
FULL_ROWS = 500
FULL_ROUNDS = {"10m": 3, "60m": 1}
"""A round of the larger model takes more than half an hour."""
QUICK_ROWS, QUICK_ROUNDS = 48, 1
QUICK_PEERS = (OURS, STOCK, REFERENCE, "trl")
_STACK = ("lorafit", "torch", "transformers", "peft", "accelerate", "trl")
_TOLD_VERSIONS = (*_STACK, "litgpt", "llamafactory", "ms_swift", "axolotl")


def main() -> int:
    """Measure all rounds, write the results, and say what failed."""
    options = _parse_arguments()
    workload = _make_workload(options)
    outcomes = {key: _installed(PEERS[key], options.environments) for key in options.peers}
    stem = f"throughput_cpu_{options.size}"
    rates = _product_rates()
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}")
        # Each round begins elsewhere: no project always runs on the machine that another heated.
        turn = number % len(options.peers)
        for key in (*options.peers[turn:], *options.peers[:turn]):
            _measure_once(key, outcomes[key], workload, options)
        _write(options.work / stem, outcomes, workload, options, number + 1, rates)
    if _is_full(options):
        _write(options.results / stem, outcomes, workload, options, options.rounds, rates)
    for name in failed(outcomes):
        say(f"{name} failed")
    return 1 if failed(outcomes) else 0


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def _parse_arguments() -> argparse.Namespace:
    cache = user_cache_path("lorafit")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers",
        help=f"comma-separated names, or all; of {', '.join(PEERS)} "
        f"(default: {', '.join(key for key, peer in PEERS.items() if peer.in_every_run)})",
    )
    parser.add_argument("--size", choices=tuple(SHAPES), default="10m", help="model size")
    parser.add_argument("--rows", type=int, help=f"training rows (default: {FULL_ROWS})")
    rounds = ", ".join(f"{count} of {size}" for size, count in FULL_ROUNDS.items())
    parser.add_argument("--rounds", type=int, help=f"rounds (default: {rounds})")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"try it: {QUICK_ROWS} rows, {QUICK_ROUNDS} round, {', '.join(QUICK_PEERS)}",
    )
    parser.add_argument(
        "--caches",
        choices=("cold", "warm"),
        default="cold",
        help="cold: every run starts without caches of data, estimates and compiled code, as the "
        "first of its kind; warm: they are kept from run to run (default: %(default)s)",
    )
    folders = {
        "--environments": (cache / "bench-environments", "where the environments are kept"),
        "--work": (cache / "bench-throughput", "where models, data and runs are kept"),
        "--results": (BENCH / "results", "where a full run writes its tables"),
    }
    for flag, (default, meaning) in folders.items():
        # Absolute, because the projects run in other folders.
        parser.add_argument(
            flag,
            type=lambda text: Path(text).absolute(),
            default=default,
            help=f"{meaning} (default: %(default)s)",
        )
    options = parser.parse_args()
    options.rows = options.rows or (QUICK_ROWS if options.quick else FULL_ROWS)
    full_rounds = FULL_ROUNDS[options.size]
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else full_rounds)
    options.peers = _chosen_peers(parser, options)
    return options


def _chosen_peers(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[str, ...]:
    if options.peers is None:
        usual = tuple(key for key, peer in PEERS.items() if peer.in_every_run)
        return QUICK_PEERS if options.quick else usual
    if options.peers == "all":
        return tuple(PEERS)
    names = tuple(options.peers.split(","))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        parser.error(f"--peers: no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    # lorafit is what the others are compared with, and stock what its losses are held against.
    return tuple(dict.fromkeys((OURS, STOCK, *names)))


def _is_full(options: argparse.Namespace) -> bool:
    usual = {key for key, peer in PEERS.items() if peer.in_every_run}
    enough = options.rows >= FULL_ROWS and options.rounds >= FULL_ROUNDS[options.size]
    return enough and usual <= set(options.peers)


def _make_workload(options: argparse.Namespace) -> Workload:
    # Work that another version of the script made is not taken for that of this one.
    made_by = sha256_of(BENCH / "peers" / "workload.py")[:8]
    folder = options.work / f"{options.size}-{options.rows}-{made_by}"
    workload = Workload(folder, options.size)
    if not (folder / "facts.json").is_file():
        say(f"making {options.rows} rows and a model of {options.size} in {folder}")
        # In a process of its own: this one stays small beside those that are measured.
        arguments = [str(folder), options.size, str(options.rows)]
        subprocess.run(
            [sys.executable, "-m", "peers.workload", *arguments],
            cwd=BENCH,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return workload


def _installed(peer: Peer, environments: Path) -> Outcome:
    """Return an outcome without rounds, its environment made; or with the reason of a failure."""
    if peer.environment is None:
        return Outcome(peer, {name: importlib.metadata.version(name) for name in _STACK[:-1]})
    try:
        say(f"environment {peer.environment.name} …")
        python = ensure_environment(peer.environment, environments)
        return Outcome(peer, _told(installed_versions(python)))
    except subprocess.CalledProcessError as error:
        words = (error.stderr or "").strip().splitlines() or [f"exit status {error.returncode}"]
        return Outcome(peer, failure=f"not installed: {words[-1]}")


def _told(versions: dict[str, str]) -> dict[str, str]:
    return {name: versions[name] for name in _TOLD_VERSIONS if versions.get(name)}


def _measure_once(
    key: str, outcome: Outcome, workload: Workload, options: argparse.Namespace
) -> None:
    """Add a round to the outcome; a peer that failed once is left out from there on."""
    if outcome.failure:
        return
    python = _python(outcome.peer.environment, options.environments)
    folder = options.work / "runs" / key
    caches = (options.work / "caches" / key) if options.caches == "warm" else folder / "caches"
    start = Start(python, workload, folder, caches)
    try:
        prepare(outcome.peer, start)
        measurement = measure(outcome.peer, start)
    except RunError as error:
        outcome.failure = str(error)
        say(f"{outcome.peer.name} failed: {error}; its words are in {start.folder}")
    else:
        outcome.rounds.append(measurement)
        say(progress(key, measurement))


def _python(environment: Environment | None, environments: Path) -> Path:
    if environment is None:
        return Path(sys.executable)
    return ensure_environment(environment, environments)


def _product_rates() -> dict[str, float]:
    """Return what one thread of this machine multiplies at best, by library."""
    command = [sys.executable, "-m", "peers.roofline", "cpu"]
    environ = {**os.environ, **ON_ONE_CORE}
    done = subprocess.run(
        command, cwd=BENCH, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the rate of products could not be measured:\n{done.stderr[-2000:]}")
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def _write(
    stem: Path,
    outcomes: dict[str, Outcome],
    workload: Workload,
    options: argparse.Namespace,
    rounds: int,
    rates: dict[str, float],
) -> None:
    device = detect_device("cpu")
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": {
            "name": device.name,
            "num_cores": device.num_cpu_cores,
            "memory_bytes": device.usable_bytes,
            "product_flops_per_second": rates,
        },
        "frozen_flops_per_token": frozen_flops_per_token(workload.model),
        "rounds": rounds,
        "caches": options.caches,
        "workload": workload.facts(),
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_json(stem.with_suffix(".json"), document(outcomes, facts))
    stem.with_suffix(".md").write_text(markdown(outcomes, facts), encoding="utf-8")
    say(f"wrote {stem}.json and {stem}.md")


if __name__ == "__main__":
    sys.exit(main())
