"""Coverage-guided fuzzing of every reader, for hours rather than seconds; not part of the tests.

pip install atheris   (Linux and macOS; it is no dependency of lorafit)
python tests/fuzz/atheris_readers.py rows_jsonl -max_total_time=3600 CORPUS_FOLDER
python tests/fuzz/atheris_readers.py --list

The first argument is a target of targets.py; all others are libFuzzer's own. A finding ends the
process with a traceback and leaves the input beside it as crash-*, to be given as an argument:
python tests/fuzz/atheris_readers.py rows_jsonl crash-0123
"""

import os
import sys
from pathlib import Path

import atheris

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
with atheris.instrument_imports(include=["lorafit", "yaml", "tomllib", "json", "csv"]):
    # Imported here, so that they are instrumented: the targets import them only when called.
    import lorafit.config.convert.translate
    import lorafit.config.resolve
    import lorafit.data.records
    import lorafit.model.adapter
    import lorafit.report.events
    import lorafit.training.checkpoints.checkpoint
    import lorafit.training.run_folder.folder  # noqa: F401
    from fuzz.targets import TARGETS, seeds_of


def main() -> None:
    """Fuzz the target that the command line names."""
    if sys.argv[1:2] == ["--list"]:
        sys.stdout.write("\n".join(TARGETS) + "\n")
        return
    name = sys.argv.pop(1)
    corpus = [Path(argument) for argument in sys.argv[1:] if os.path.isdir(argument)]
    for folder in corpus[:1]:
        for index, seed in enumerate(seeds_of(name)):
            (folder / f"seed-{index}").write_bytes(seed)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
