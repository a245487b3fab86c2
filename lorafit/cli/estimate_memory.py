"""`lorafit estimate-memory`: what a run takes at its peak, and whether it fits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lorafit.cli import console
from lorafit.cli.settings_flags import RunChoices, with_settings
from lorafit.errors import ExitCode, ModelError
from lorafit.text import escape_control, excerpt
from lorafit.units import format_bytes

if TYPE_CHECKING:
    from lorafit.memory.estimate import Estimate

_BAR_WIDTH = 50
# key of the breakdown, what it is called, colour
_PARTS = (
    ("weights_bytes", "base weights", "blue"),
    ("adapter_bytes", "adapter", "cyan"),
    ("gradient_bytes", "gradients", "magenta"),
    ("optimizer_bytes", "optimizer", "yellow"),
    ("activation_bytes", "activations", "green"),
    ("logits_bytes", "logits and loss", "bright_green"),
    ("workspace_bytes", "kernels' scratch", "bright_black"),
    ("fragmentation_bytes", "cached or fragmented", "white"),
    ("context_bytes", "device context", "red"),
)
_VERDICT_STYLE = {"fits": "green", "tight": "yellow", "exceeds": "red"}


@with_settings
def command(
    choices: RunChoices,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document to stdout.")
    ] = False,
    expandable_segments: Annotated[
        bool,
        typer.Option(
            "--expandable-segments",
            help="Estimate with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.",
        ),
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Trace again, even if the answer is stored.")
    ] = False,
) -> None:
    """Say how much memory a run takes at its peak, before it starts. Exit code 4: does not fit.

    `--kernels stock`, given on the command line, estimates a plain script around transformers
    and PEFT instead of lorafit's own training.

    Examples:
      lorafit estimate-memory --preset balanced --hardware a10g

      lorafit estimate-memory --model microsoft/phi-2 --hardware t4 --quantization nf4 --json

      lorafit estimate-memory --preset high && lorafit train --preset high --data my.jsonl
    """
    resolved, device = choices.resolve()
    settings = resolved.settings
    plain_script = settings.kernels == "stock" and resolved.is_explicit("kernels")
    config = _model_config(settings.model, settings.revision)
    from lorafit.memory.cache import cached_estimate
    from lorafit.memory.estimate import estimate_memory

    def compute() -> "Estimate":
        from lorafit.model.libraries import prepare_libraries

        prepare_libraries()
        return estimate_memory(
            settings,
            config,
            device,
            plain_script=plain_script,
            expandable_segments=expandable_segments,
        )

    variant = f"plain={plain_script} expandable={expandable_segments}"
    if no_cache:
        estimate = compute()
    else:
        estimate = cached_estimate(settings, config, device, compute, variant=variant)
    if as_json:
        console.print_json(estimate.document())
    else:
        console.out(render(estimate))
    if estimate.verdict == "exceeds":
        raise typer.Exit(int(ExitCode.DEVICE))


def _model_config(name: str, revision: str | None) -> dict[str, Any]:
    """Return config.json of a folder, of a bundled model, or of a hub model."""
    from lorafit.model.architectures import bundled_config, bundled_models
    from lorafit.model.source import locate_model

    bundled = None if Path(name).exists() else bundled_config(name)
    if bundled is not None:
        return bundled
    try:
        return locate_model(name, revision, need_weights=False).config
    except ModelError as failure:
        if Path(name).exists() or "/" not in name:
            raise
        known = ", ".join(bundled_models())
        hint = f"{failure.hint}; known without a download: {known}" if failure.hint else known
        raise ModelError(failure.message, hint=hint, where=failure.where) from None


def render(estimate: "Estimate") -> Text:
    """Return the estimate for people: a bar of the capacity, its parts, the verdict."""
    peak, capacity = estimate.peak, estimate.capacity_bytes
    text = Text()
    text.append(f"{escape_control(excerpt(estimate.model))}", style="bold")
    text.append(f" on {escape_control(estimate.hardware['name'])}\n\n")
    text.append_text(_bar(estimate))
    text.append("\n\n")
    for key, label, colour in _PARTS:
        size = estimate.breakdown[key]
        text.append("  █ ", style=colour)
        text.append(f"{label:22}{format_bytes(size):>10}\n")
    text.append(f"    {'process at its peak':22}{format_bytes(peak.process_bytes):>10}")
    text.append(f"  in the {peak.phase.replace('_', ' ')} phase\n", style="dim")
    text.append(f"    {'of which allocated':22}{format_bytes(peak.allocated_bytes):>10}\n")
    text.append(f"    {'capacity':22}{format_bytes(capacity):>10}\n\n")
    *facts, verdict = estimate.reasons
    text.append(verdict + "\n", style=f"bold {_VERDICT_STYLE[estimate.verdict]}")
    for fact in facts:
        text.append(f"  {escape_control(fact)}\n", style="dim")
    text.right_crop(1)
    return text


def _bar(estimate: "Estimate") -> Text:
    """Return a bar in which each part has its share of the capacity, or of the larger peak."""
    scale = max(estimate.capacity_bytes, estimate.peak.process_bytes)
    bar, filled, total = Text("  "), 0, 0
    for key, _, colour in _PARTS:
        total += estimate.breakdown[key]
        cells = round(total / scale * _BAR_WIDTH) - filled
        bar.append("█" * cells, style=colour)
        filled += cells
    bar.append("░" * (_BAR_WIDTH - filled), style="dim")
    bar.append(f"  {estimate.peak.process_bytes / estimate.capacity_bytes:.0%}")
    return bar
