"""The estimators that are compared: pins, what each figure means, what cannot be expressed."""

from dataclasses import dataclass
from typing import Literal

Measured = Literal["process_bytes", "allocated_bytes"]


@dataclass(frozen=True)
class Figure:
    """A number that an estimator gives for a run, and the measured peak that it claims to be."""

    name: str
    against: Measured
    meaning: str


@dataclass(frozen=True)
class Estimator:
    """An estimator: how to install it, which module asks it, and how to read its figures."""

    name: str
    module: str
    requirements: tuple[str, ...]
    needs_torch: bool
    figures: tuple[Figure, ...]
    asked: str
    notes: str


ESTIMATORS = (
    Estimator(
        name="fitcheck-llm",
        module="fitcheck_llm",
        requirements=("fitcheck-llm==0.3.1",),
        needs_torch=False,
        figures=(
            Figure("total", "process_bytes", "its total, which its verdict uses"),
            Figure("tensors", "allocated_bytes", "its total less `overhead_mib`"),
        ),
        asked="Python API: `fetch_model_config` in its offline mode, `estimate`, `get_gpu('t4')`",
        notes=(
            "Expresses every setting of these runs except dropout (0 here). Seems to have been "
            "fitted on them: the worst errors here equal those that it publishes for its "
            "calibration runs (13.9 % of process memory, 4.6 % of tensors). For models that it "
            "had held out it publishes 5.4 % mean and 15.3 % worst. Parameters are counted from "
            "config.json, as it does without a network."
        ),
    ),
    Estimator(
        name="canifinetune",
        module="canifinetune",
        requirements=("canifinetune==0.4.1",),
        needs_torch=False,
        figures=(
            Figure("peak", "process_bytes", "its total less its safety margin"),
            Figure("budget", "process_bytes", "the total that it prints"),
            Figure("tensors", "allocated_bytes", "its peak less `cuda_overhead_gb`"),
        ),
        asked="Python API: `EstimateRequest` with the model's folder, `estimate`; no calibration",
        notes=(
            "Knows the GPU by its capacity alone: 8 % of it stands for context, fragmentation and "
            "workspaces, 5 % for safety. It scores itself against reserved memory, 141 MiB below "
            "process memory here. Which SDPA kernel runs cannot be said."
        ),
    ),
    Estimator(
        name="ftuneai",
        module="ftuneai",
        requirements=("ftuneai==0.4.1",),
        needs_torch=False,
        figures=(Figure("total", "process_bytes", "its total, with 20 % of overhead"),),
        asked="Python API: `Estimator.estimate_memory`; its hub reader gets the local config.json",
        notes=(
            "Cannot express the GPU, the dtype of the adapters (it assumes 16 bit), double "
            "quantization or dropout; it has no term for logits, nor for an untied output layer. "
            "The memory-efficient SDPA kernel is passed as its `flash_attention`."
        ),
    ),
    Estimator(
        name="accelerate estimate-memory",
        module="accelerate_estimate",
        requirements=("accelerate==1.15.0", "transformers==5.23.0"),
        needs_torch=True,
        figures=(
            Figure("training with Adam", "process_bytes", "its only figure for training"),
            Figure("load", "process_bytes", "its size of the loaded weights, no training peak"),
        ),
        asked=(
            "the code of the command on the model's folder; only its question to the hub, which "
            "library the model is for, is answered in its place (the command needs a network)"
        ),
        notes=(
            "Cannot express LoRA (it assumes that all weights are trained), sequence length, batch "
            "size, attention, checkpointing or the GPU, and has no figure for training a quantized "
            "model. It builds the model without its output layer."
        ),
    ),
)
