"""`lorafit demo`: see it work, offline, on the CPU, in minutes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lorafit.cli import console
from lorafit.cli.options import Json
from lorafit.cli.tables import plain_table
from lorafit.errors import UsageError
from lorafit.units import format_duration

if TYPE_CHECKING:
    from lorafit.demo.run import DemoResult, Examination

SCHEMA_VERSION = 1
_NUM_SHOWN = 3


def command(
    output_dir: Annotated[
        str, typer.Option(help="Folder of the run.", metavar="DIR")
    ] = "outputs/demo",
    as_json: Json = False,
) -> None:
    """Train a tiny model here and now, and compare it before and after.

    Makes a Phi model of a few million parameters and its tokenizer (cached for next time), trains
    a LoRA adapter on natural-language inference with reasoning through the code path of
    `lorafit train`, and answers held-out problems before and after.

    Needs no network and no GPU.

    Example: lorafit demo --output-dir outputs/demo
    """
    if not output_dir:
        raise UsageError("--output-dir is empty", hint="--output-dir outputs/demo")
    from lorafit.cli.progress import TerminalProgress
    from lorafit.demo.run import run_demo

    stages = _Stages()
    training = TerminalProgress(console.stderr_console(), logging_steps=20)
    with stages:
        result = run_demo(Path(output_dir), [training], stages.show)
    if as_json:
        console.print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "before": _figures(result.before),
                "after": _figures(result.after),
                "num_problems": result.num_problems,
                "model": str(result.model),
                "adapter": str(result.adapter),
                "elapsed_seconds": round(result.elapsed_seconds, 1),
            }
        )
        return
    _show(result)


class _Stages:
    """One progress bar for whatever stage is going on; gone while training has its own."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._name = ""

    def __enter__(self) -> "_Stages":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def show(self, name: str, done: int, total: int) -> None:
        """Show a stage; it is closed when all of it is done."""
        if name != self._name:
            self._close()
            self._name = name
            console.say(f"{name} ...")
            if console.stderr_console().is_terminal:
                self._bar = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=None),
                    TimeElapsedColumn(),
                    console=console.stderr_console(),
                    transient=True,
                )
                self._bar.add_task("", total=total)
                self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _figures(examination: "Examination") -> dict[str, float]:
    report = examination.report
    return {
        "accuracy": report.accuracy,
        "macro_f1": report.macro_f1,
        "answered": examination.answered,
    }


def _show(result: "DemoResult") -> None:
    console.say()
    if result.was_complete:
        console.say("this demo had been trained before: its adapter was used again")
    both = (result.before, result.after)
    rows = [
        ("accuracy", *(f"{one.report.accuracy:.1%}" for one in both)),
        ("macro-F1", *(f"{one.report.macro_f1:.3f}" for one in both)),
        ("answers that end in a label", *(f"{one.answered:.1%}" for one in both)),
    ]
    title = f"{result.num_problems} held-out problems, names and nouns never seen in training"
    console.out(plain_table(title, ("", "before", "after"), rows))
    console.say("Where an answer has no label, the label that the model finds likeliest counts.")
    for index in _spread(result):
        was, now = result.before.answers[index], result.after.answers[index]
        console.out("")
        console.out(was.prompt)
        console.out(f"  before: {was.text or '(nothing)'}")
        console.out(f"  after:  {now.text}")
        console.out(f"  true label: {now.label}")
    console.say()
    console.say(f"adapter: {result.adapter} (plain PEFT)")
    console.say(f"took {format_duration(result.elapsed_seconds)}")
    console.say("next, with your own data:")
    console.say("  lorafit data inspect FILE")
    console.say("  lorafit train --preset balanced --data FILE --dry-run")


def _spread(result: "DemoResult") -> list[int]:
    """Return one problem of each label, the first of each."""
    labels = [answer.label for answer in result.after.answers]
    return [labels.index(label) for label in sorted(set(labels))][:_NUM_SHOWN]
