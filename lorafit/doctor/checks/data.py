"""The training data that was asked about."""

from typing import TYPE_CHECKING

from lorafit.config.resolve import resolve_run
from lorafit.config.schema import Settings
from lorafit.doctor.check import Outcome, check, error, ok, skip, warn
from lorafit.doctor.probe import Probe
from lorafit.errors import LorafitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@check(
    "data.file",
    "What you asked about",
    "Training data",
    affects="rows that are cut or hold nothing to learn are wasted; wrong ones stop the run",
)
def training_data(probe: Probe) -> Outcome:
    """Read every row; with --model, tokenize them too."""
    data = probe.question.data
    if data is None:
        return skip("only with --data")
    from lorafit.data.inspection import inspect_data
    from lorafit.data.sources import HubSource, resolve_source

    try:
        settings = _settings(probe)
        is_remote = isinstance(resolve_source(data, settings.data_split), HubSource)
        if is_remote and not probe.question.is_deep:
            return skip("a data set of the hub is read with --deep only")
        tokenizer = _tokenizer(probe)
        found = inspect_data(data, settings, tokenizer)
    except LorafitError as problem:
        return error(
            str(problem),
            (problem.hint or "correct these lines").replace("\n", "; "),
            f"lorafit data inspect {data}",
        )
    detail = "; ".join(found.lines)
    measured = f"{found.records.num_rows_read} rows"
    look = f"lorafit data inspect {data} --model MODEL --show-mask 1"
    if found.warnings:
        return warn(f"{detail}; {'; '.join(found.warnings)}", "look at the rows", look)
    if tokenizer is None:
        return ok(f"{detail} (add --model to count tokens)", measured=measured)
    return ok(detail, measured=measured)


def _settings(probe: Probe) -> Settings:
    """Return the settings to read data with: the preset's that was asked for, or the defaults."""
    device = probe.usable_device()
    if probe.question.preset is None or device is None:
        return Settings()
    return resolve_run(
        preset=probe.question.preset,
        config_file=None,
        overrides=[],
        flags={},
        environ=probe.environ,
        device=device,
    ).settings


def _tokenizer(probe: Probe) -> "PreTrainedTokenizerBase | None":
    if probe.question.model is None:
        return None
    from lorafit.model.libraries import prepare_libraries
    from lorafit.model.tokenizer import tokenizer_of

    prepare_libraries()
    return tokenizer_of(probe.model_source(need_weights=False))
