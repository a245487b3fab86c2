"""What `lorafit train` says and prints besides its plan: of an import, a dry run, the result."""

from typing import TYPE_CHECKING, Any

from lorafit.cli import console
from lorafit.errors import MemoryFitError
from lorafit.text import shell_word
from lorafit.units import format_about, format_bytes, format_duration

if TYPE_CHECKING:
    from lorafit.config.extension import ScheduleChange
    from lorafit.training.planning.run_plan import RunPlan
    from lorafit.training.run import RunResult
    from lorafit.training.run_folder.folder import ResumeChoice

SCHEMA_VERSION = 1


def say_import(plan: "RunPlan", choice: "ResumeChoice") -> None:
    """Show what of a foreign checkpoint is taken over, unless this run went on from it before."""
    from lorafit.cli.import_view import render_import
    from lorafit.training.foreign.hf_compare import examine_hf_checkpoint
    from lorafit.training.run_folder.folder import find_start

    start = find_start(plan, choice)
    if start.imports is not None:
        console.say()
        console.say(render_import(examine_hf_checkpoint(plan, start.imports, choice.allowed)))


def end_dry_run(plan: "RunPlan", change: "ScheduleChange | None", *, as_json: bool) -> None:
    """Print the plan as JSON where that was asked for, and say whether `train` would refuse it."""
    if as_json:
        document = {"schema_version": SCHEMA_VERSION, "status": "planned", **plan.as_dict()}
        if change is not None:
            document["extension"] = change.as_dict()
        console.print_json({**document, "settings": plan.settings.model_dump(mode="json")})
    try:
        plan.require_fit()
    except MemoryFitError as refusal:
        console.warn(f"train would refuse: {refusal}")
        console.say(str(refusal.hint))
    console.say("dry run: nothing was trained")


def say_result(result: "RunResult", method: str, *, as_json: bool) -> None:
    """Say what a run has come to, where it lies and what to type next."""
    _say_summary(result, method)
    if as_json:
        console.print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "status": "completed",
                "run_dir": str(result.run_dir),
                "adapter": str(result.adapter),
                **result.results,
            }
        )


def _say_summary(result: "RunResult", method: str) -> None:
    figures = result.results
    console.say()
    if result.was_complete:
        console.say(f"already complete at step {figures.get('steps')}: nothing was done")
    elif figures["first_loss"] is None:
        console.say(f"done: all steps were taken before; the adapter is of step "
                    f"{figures['adapter_step']}")  # fmt: skip
    else:
        loss = f"loss {figures['first_loss']:.4f} -> {figures['final_loss']:.4f}"
        if figures["validation_loss"] is not None:
            loss += f", validation {figures['validation_loss']:.4f}"
        if "final_reward" in figures:
            what = "margin" if method == "dpo" else "reward"
            loss += f", {what} {figures['first_reward']:.4f} -> {figures['final_reward']:.4f}"
        console.say(f"done: {figures['steps']} steps, {loss}")
        console.say(
            f"{figures['tokens']:,} tokens at {figures['tokens_per_second']:,.0f} a second, "
            f"peak memory {format_bytes(figures['peak_memory_bytes'])} "
            f"(predicted {format_bytes(figures['predicted_peak_memory_bytes'])})"
        )
        console.say(_duration_words(figures))
    _say_best(figures)
    adapter, run_dir = shell_word(result.adapter), shell_word(result.run_dir)
    console.say(f"adapter: {adapter} (plain PEFT)")
    if (result.run_dir / "report.html").is_file():
        console.say(f"report: {shell_word(result.run_dir / 'report.html')}")
    console.say("next:")
    console.say(f"  lorafit evaluate --adapter {adapter} --data FILE")
    console.say(f'  lorafit generate --adapter {adapter} --prompt "..."')
    console.say(f"  lorafit chat {run_dir}, lorafit export {run_dir}")


def _duration_words(figures: dict[str, Any]) -> str:
    taken = f"took {format_duration(figures['duration_seconds'])}"
    ends = ("predicted", "predicted_low", "predicted_high")
    seconds = [figures[f"{end}_duration_seconds"] for end in ends]
    if None in seconds:
        return taken
    predicted, low, high = map(format_about, seconds)
    return f"{taken} (predicted {predicted}, {low} to {high})"


def _say_best(figures: dict[str, Any]) -> None:
    """Name the best checkpoint where it is not the step that the adapter is of."""
    best = figures.get("best_checkpoint")
    if best is None:
        return
    loss = f"validation loss {figures['best_checkpoint_validation_loss']:.4f}"
    if best == f"checkpoint-{figures.get('adapter_step')}":
        console.say(f"best checkpoint: {best} ({loss}); the adapter is of that step")
    else:
        console.say(
            f"best checkpoint: {best} ({loss}); it is kept, and --load-best-model-at-end makes the "
            "adapter of it"
        )
