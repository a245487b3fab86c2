"""Compare other projects' memory estimators with 39 measured runs.

    python bench/memory_peers.py [--environments FOLDER]

Each estimator is installed from PyPI at its pin into an environment of its own (made once, about
1.5 GB in all), asked about every run of bench/data/measured_peaks.csv, and compared with what was
measured. Writes bench/results/memory_peers_t4.json and .md.
"""

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

from memory_estimators.comparison import Answer, document, markdown
from memory_estimators.environments import ask, ensure_environment, installed_versions
from memory_estimators.estimators import ESTIMATORS, Estimator
from memory_estimators.runs import read_runs
from platformdirs import user_cache_path

from lorafit.files import write_json

BENCH = Path(__file__).absolute().parent


def main() -> int:
    arguments = _parse_arguments()
    runs = read_runs(arguments.data)
    answers = [_answer(each, arguments.environments, arguments.data) for each in ESTIMATORS]

    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    arguments.results.mkdir(parents=True, exist_ok=True)
    stem = arguments.results / "memory_peers_t4"
    write_json(stem.with_suffix(".json"), document(answers, runs, date))
    stem.with_suffix(".md").write_text(markdown(answers, runs, date), encoding="utf-8")
    print(f"wrote {stem}.json and {stem}.md", file=sys.stderr)
    return 1 if any(answer.failure for answer in answers) else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    folders = {
        "--environments": (
            user_cache_path("lorafit") / "bench-environments",
            "where the estimators' environments are kept",
        ),
        "--data": (BENCH / "data", "holds measured_peaks.csv and configs/"),
        "--results": (BENCH / "results", "where the tables are written"),
    }
    for flag, (default, meaning) in folders.items():
        # Absolute, because the estimators run in another folder.
        parser.add_argument(
            flag,
            type=lambda text: Path(text).absolute(),
            default=default,
            help=f"{meaning} (default: %(default)s)",
        )
    return parser.parse_args()


def _answer(estimator: Estimator, environments: Path, data: Path) -> Answer:
    """Return the estimator's figures; one that cannot be had is reported, and the rest go on."""
    print(f"asking {estimator.name} …", file=sys.stderr)
    try:
        python = ensure_environment(estimator, environments)
        return Answer(estimator, installed_versions(python), ask(estimator, python, data))
    except subprocess.CalledProcessError as error:
        words = (error.stderr or "").strip().splitlines() or [f"exit status {error.returncode}"]
        print(f"{estimator.name} failed: {words[-1]}", file=sys.stderr)
        return Answer(estimator, {}, {}, failure=words[-1])


if __name__ == "__main__":
    sys.exit(main())
