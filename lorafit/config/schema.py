"""The schema of a run: every setting, with its meaning, unit, range and default.

`Settings` is flat, frozen and strict. It is the only list of settings: command-line flags,
`lorafit config aliases` and the reference in docs/ are generated from it. The defaults are those
of the training guide for Phi-2 (effective batch 64, 20 epochs, rank 8).
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SCHEMA_VERSION = 1

Quantization = Literal["none", "nf4", "int8"]
ComputeDtype = Literal["auto", "bfloat16", "float16", "float32"]
AttnImplementation = Literal["auto", "eager", "sdpa", "sdpa-efficient", "flash_attention_2"]
Kernels = Literal["lorafit", "stock"]
PaddingFree = Literal["auto", "true", "false"]


class Recommended(BaseModel):
    """A range outside of which a value is allowed, but worth a warning that says why."""

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    below: str
    """What happens below `low`."""
    above: str
    """What happens above `high`."""


def _at_most(high: int, above: str) -> Recommended:
    """Return the range of a count of steps that has no lower end worth a word."""
    return Recommended(low=1, high=high, below="", above=above)


def _no_bool(value: Any) -> Any:
    # bool is an int in Python: without this, `lora_r: true` would train rank 1.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be finite")
    return value


Int = Annotated[int, Field(strict=True), BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), BeforeValidator(_finite)]
Text = Annotated[str, Field(min_length=1)]


def setting(
    default: Any,
    description: str,
    group: str,
    *,
    recommended: Recommended | None = None,
    preset: bool = True,
    **constraints: Any,
) -> Any:
    """Declare a setting: its default, meaning, help panel, and recommended range.

    `preset=False` marks what belongs to a machine or a person and is refused in a preset.
    """
    extra: dict[str, Any] = {"group": group, "preset": preset, "recommended": recommended}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class Settings(BaseModel):
    """Every setting of a run under its one name; immutable once validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    # -- Model
    model: Text = setting(
        "microsoft/phi-2", "base model: a hub id or a local folder with safetensors", "Model"
    )
    revision: Text | None = setting(
        None, "branch, tag or commit of a hub model; none: the default branch", "Model"
    )
    compute_dtype: ComputeDtype = setting(
        "auto", "number format of weights and products; auto: the best the device supports", "Model"
    )
    quantization: Quantization = setting(
        "none", "number format of the frozen base weights: none, nf4 (4 bit) or int8", "Model"
    )
    double_quant: bool = setting(
        True, "nf4 only: quantize the scales too, saves about 0.4 bit a parameter", "Model"
    )
    attn_implementation: AttnImplementation = setting(
        "auto", "attention operator; auto: sdpa, PyTorch's fused attention", "Model"
    )
    kernels: Kernels = setting(
        "lorafit",
        "training kernels; lorafit: same numbers from less memory; stock: unmodified transformers "
        "and PEFT",
        "Model",
    )

    # -- LoRA
    lora_r: Int = setting(
        8,
        "rank of the LoRA update of each target module",
        "LoRA",
        ge=1,
        le=256,
        recommended=Recommended(
            low=8,
            high=32,
            below="the adapter may lack the capacity to learn the task",
            above="the adapter grows and overfits sooner; usually without a gain",
        ),
    )
    lora_alpha: Float = setting(
        32.0,
        "scale of the update, which is multiplied by lora_alpha / lora_r; usually 2 to 4 x lora_r",
        "LoRA",
        gt=0,
        le=4096,
    )
    lora_dropout: Float = setting(
        0.05,
        "share of the inputs of each LoRA module that is dropped in training",
        "LoRA",
        ge=0,
        lt=1,
        recommended=Recommended(
            low=0.03,
            high=0.1,
            below="less regularization: watch the validation loss",
            above="learning slows down: much of each update is noise",
        ),
    )
    target_modules: tuple[Text, ...] | None = setting(
        None,
        "names of the Linear modules that get an adapter; none: those known for the architecture",
        "LoRA",
        min_length=1,
    )
    modules_to_save: tuple[Text, ...] = setting(
        (), "names of modules that are trained and saved whole, beside the adapter", "LoRA"
    )
    use_rslora: bool = setting(
        False, "scale by lora_alpha / sqrt(lora_r), which keeps high ranks stable", "LoRA"
    )
    use_dora: bool = setting(False, "weight-decomposed LoRA: learns magnitudes too, slower", "LoRA")

    # -- Data
    data: Text | None = setting(
        None,
        "training data: a .jsonl, .json, .csv or .parquet file, or a hub data set id",
        "Data",
        preset=False,
    )
    data_split: Text = setting("train", "split to train on, for a hub data set", "Data")
    validation_data: Text | None = setting(
        None,
        "validation file; none: a share of the training data is held out",
        "Data",
        preset=False,
    )
    validation_split: Float = setting(
        0.1, "share of the training data held out for validation; 0: none", "Data", ge=0, le=0.5
    )
    prompt_template: Text | None = setting(
        None,
        "prompt with {field} placeholders, for rows such as {premise} and {hypothesis}",
        "Data",
    )
    completion_template: Text | None = setting(
        None, "completion with {field} placeholders; goes with prompt_template", "Data"
    )
    label_field: Text | None = setting(
        None, "field with a row's label, for accuracy and macro-F1; none: `label` if there", "Data"
    )
    chat_template: Text | None = setting(
        None,
        "chat template for messages: chatml, or a .jinja file; none: the tokenizer's own",
        "Data",
    )
    max_length: Int = setting(
        1024,
        "tokens kept of a row, prompt and completion together; longer rows are cut and counted",
        "Data",
        ge=8,
        le=1_048_576,
    )
    train_on_prompt: bool = setting(
        False, "learn to write the prompt too, not only the completion", "Data"
    )
    max_dropped: Float = setting(
        0.1,
        "largest share of rows that may be dropped for lack of trainable tokens",
        "Data",
        ge=0,
        le=1,
    )
    dataloader_num_workers: Int = setting(
        0,
        "processes that prepare batches; rows are tokenized before training, so 0 is fast",
        "Data",
        ge=0,
        le=64,
    )

    # -- Batch and memory
    per_device_train_batch_size: Int = setting(
        8,
        "micro-batch: rows a device takes through one forward and backward pass",
        "Batch and memory",
        ge=1,
        le=4096,
        recommended=Recommended(
            low=4,
            high=16,
            below="short passes leave the device idle: use it when memory is short",
            above="few devices have the memory; accumulation reaches the same effective batch",
        ),
    )
    gradient_accumulation_steps: Int = setting(
        8,
        "micro-batches added up before one optimizer step",
        "Batch and memory",
        ge=1,
        le=65_536,
        recommended=Recommended(
            low=4,
            high=32,
            below="the effective batch may be small and its gradients noisy",
            above="an optimizer step takes that many passes: progress is slow to see",
        ),
    )
    effective_batch_size: Int | None = setting(
        None,
        "rows an optimizer step: micro-batch x accumulation x devices; sets accumulation",
        "Batch and memory",
        ge=1,
        le=1_048_576,
    )
    padding_free: PaddingFree = setting(
        "auto",
        "rows of a micro-batch end to end instead of padded to the longest; a step has the same "
        "rows and gradients; auto: where model and device can",
        "Batch and memory",
    )
    packing: bool = setting(
        False,
        "fill bins of max_length tokens with whole rows; micro-batch and effective batch then "
        "count bins, so that a step has more rows and an epoch fewer steps",
        "Batch and memory",
    )
    per_device_eval_batch_size: Int | None = setting(
        None,
        "rows a device takes in validation; none: as many as a micro-batch holds",
        "Batch and memory",
        ge=1,
        le=4096,
    )
    memory_fraction: Float = setting(
        0.9, "share of the device's memory that a plan may use", "Batch and memory", gt=0, le=1
    )
    gradient_checkpointing: bool = setting(
        True,
        "keep one activation a layer and compute the rest again in backward: far less memory, "
        "about a third slower",
        "Batch and memory",
    )
    checkpointed_layers: Int | None = setting(
        None,
        "with gradient_checkpointing: how many layers, from the first, are computed again; none: "
        "all of them",
        "Batch and memory",
        ge=1,
        le=1000,
    )
    torch_compile: bool = setting(
        True, "compile the model with torch.compile: pays on NVIDIA GPUs", "Batch and memory"
    )

    # -- Optimization
    learning_rate: Float = setting(
        2e-4,
        "peak learning rate, reached at the end of the warm-up",
        "Optimization",
        gt=0,
        le=1,
        recommended=Recommended(
            low=5e-5,
            high=2e-4,
            below="learning is slow: the run may end underfitted",
            above="training may become unstable",
        ),
    )
    num_train_epochs: Float = setting(
        20.0, "passes over the training data", "Optimization", gt=0, le=10_000
    )
    max_steps: Int | None = setting(
        None,
        "optimizer steps; overrides num_train_epochs",
        "Optimization",
        ge=1,
        le=10**9,
        recommended=_at_most(100_000, "few runs gain from so many steps: watch validation loss"),
    )
    warmup_ratio: Float = setting(
        0.05,
        "share of all steps in which the learning rate rises from 0 to its peak",
        "Optimization",
        ge=0,
        lt=1,
        recommended=Recommended(
            low=0.03,
            high=0.1,
            below="the first steps take a high rate and may be unstable",
            above="much of the run is spent below the peak rate",
        ),
    )
    warmup_steps: Int | None = setting(
        None, "warm-up in steps; overrides warmup_ratio", "Optimization", ge=0, le=10**9
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = setting("cosine", "course of the learning rate after the warm-up", "Optimization")
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "sgd",
        "adafactor",
    ] = setting("adamw_torch", "optimizer", "Optimization")
    weight_decay: Float = setting(0.0, "AdamW's decoupled weight decay", "Optimization", ge=0, le=1)
    max_grad_norm: Float = setting(
        1.0, "gradients are scaled down to this norm; 0: no clipping", "Optimization", ge=0, le=1e6
    )
    label_smoothing_factor: Float = setting(
        0.0, "share of each target spread over the vocabulary", "Optimization", ge=0, lt=1
    )
    seed: Int = setting(
        42, "seed of data order, dropout and adapters", "Optimization", ge=0, le=2**32 - 1
    )

    # -- Reinforcement learning
    method: Literal["sft", "grpo", "dpo"] = setting(
        "sft",
        "what is learnt from; sft: given answers; grpo: rewards of answers that the model writes; "
        "dpo: pairs of a better and a worse answer; grpo and dpo need the extra `rl`",
        "Reinforcement learning",
    )
    reward_functions: Text | None = setting(
        None,
        "grpo: Python file with the reward functions, FILE.py or FILE.py:name,name; it is your own "
        "code, and the only code that is ever run from a path: only the command line can name it",
        "Reinforcement learning",
        preset=False,
    )
    num_generations: Int = setting(
        8,
        "grpo: answers that are written to each prompt and compared with each other",
        "Reinforcement learning",
        ge=2,
        le=1024,
    )
    max_completion_length: Int = setting(
        256, "grpo: tokens of an answer at most", "Reinforcement learning", ge=1, le=1_048_576
    )
    temperature: Float = setting(
        1.0,
        "grpo: divides the logits when answers are written; higher: answers differ more",
        "Reinforcement learning",
        gt=0,
        le=10,
    )
    beta: Float | None = setting(
        None,
        "pull towards the model before training: grpo's weight of the KL divergence (none: 0, no "
        "pull), dpo's scale of the rewards (none: 0.1)",
        "Reinforcement learning",
        ge=0,
        le=100,
    )

    # -- Run
    output_dir: Text = setting(
        "outputs/run", "folder of the run: records, checkpoints, adapter", "Run", preset=False
    )
    logging_steps: Int = setting(
        10,
        "a line is printed every so many steps (events.jsonl has every step)",
        "Run",
        ge=1,
        le=10**9,
        recommended=_at_most(100, "the screen shows little of how training goes"),
    )
    eval_steps: Int = setting(
        500,
        "validation every so many steps, and at the end",
        "Run",
        ge=1,
        le=10**9,
        recommended=_at_most(5000, "overfitting is seen late"),
    )
    save_steps: Int = setting(
        100,
        "a checkpoint every so many steps",
        "Run",
        ge=1,
        le=10**9,
        recommended=_at_most(1000, "a run that is killed loses up to that many steps"),
    )
    save_total_limit: Int = setting(
        3,
        "newest checkpoints kept, and the best by validation loss; older ones are removed",
        "Run",
        ge=1,
        le=10_000,
    )
    load_best_model_at_end: bool = setting(
        False,
        "make the adapter from the checkpoint with the lowest validation loss, not from the last "
        "step; a validation that is the best so far is then saved too",
        "Run",
    )
    on_oom: Literal["recover", "fail"] = setting(
        "recover",
        "when memory runs out: recover repeats the step with half the micro-batch, fail stops",
        "Run",
    )
    device: Text = setting(
        "auto", "device to train on: auto, cuda, cuda:1, mps or cpu", "Run", preset=False
    )
    ddp_timeout: Int = setting(
        600,
        "seconds without progress after which a run of several processes is ended: one of them "
        "hangs, or its machine is gone",
        "Run",
        ge=5,
        le=86_400,
    )
    early_stopping_patience: Int | None = setting(
        None,
        "stop after so many validations in a row without a new lowest loss; none: never",
        "Run",
        ge=1,
        le=10_000,
    )
    sample_prompts: Int = setting(
        3,
        "validation prompts that the model answers at each validation, kept in samples.jsonl; 0: "
        "none",
        "Run",
        ge=0,
        le=64,
    )
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio", "none"], ...] = setting(
        ("tensorboard",),
        "trackers that get the curves: tensorboard writes OUTPUT_DIR/tensorboard; the others need "
        "their extra, as in lorafit[wandb]; none: no tracker",
        "Run",
    )


SETTING_GROUPS = (
    "Model",
    "LoRA",
    "Data",
    "Batch and memory",
    "Optimization",
    "Reinforcement learning",
    "Run",
)


def setting_group(name: str) -> str:
    """Return the help panel of a setting."""
    return str(_extra(name)["group"])


def is_preset_setting(name: str) -> bool:
    """Return whether a preset may hold this setting; False for paths and devices."""
    return bool(_extra(name)["preset"])


def recommended_range(name: str) -> Recommended | None:
    """Return the recommended range of a setting, if it has one."""
    value = _extra(name)["recommended"]
    return value if isinstance(value, Recommended) else None


def _extra(name: str) -> dict[str, Any]:
    extra = Settings.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra
