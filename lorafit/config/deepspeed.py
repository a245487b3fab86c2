"""Keys of a DeepSpeed configuration, and what each of them is here.

DeepSpeed's engine would wrap model and optimizer in a step of its own, so it is not used: what a
configuration asks of it is done by lorafit's means where there are any, and refused where the run
would be another one. Names and meanings are those of DeepSpeed 0.19.
"""

from lorafit.config.document import Plain
from lorafit.config.fields import show_value
from lorafit.config.outcomes import (
    NO_SETTING,
    Kept,
    Lost,
    Outcome,
    Rule,
    anyway,
    becomes,
    becomes_one_of,
    ignored,
    is_off,
    switches,
    unless_set,
)
from lorafit.text import excerpt

STAGE = "zero_optimization.stage"
DEFAULT_STAGE = 2
"""What accelerate takes where neither its configuration nor the command line names a stage."""

_OFFLOADS = (
    "lorafit moves neither weights nor optimizer state to the host or a disk while it trains"
)
_STATE = (
    f"{_OFFLOADS}; optimizer state is that of the adapter alone, and --optim paged_adamw_8bit can "
    "page it"
)
_WEIGHTS = (
    f"{_OFFLOADS}; --quantization nf4 makes the base weights small, and --parallelism fsdp shares "
    "them"
)
_SCHEDULE = (
    "the learning rate follows lr_scheduler_type and warmup_ratio: take `scheduler` out, and give "
    "--lr-scheduler-type"
)
_BUFFERS = "it is about buffers that DeepSpeed has and lorafit has not"
_OPTIMIZERS: dict[str, Plain] = {"AdamW": "adamw_torch", "Adam": "adamw_torch"}
"""DeepSpeed's Adam decays weights as AdamW does, unless adam_w_mode is false."""


def _parallelism(value: Plain) -> Outcome:
    stages: dict[str, Plain] = {"0": "ddp", "1": "ddp", "2": "ddp", "3": "fsdp"}
    if show_value(value) not in stages:
        return Lost("ZeRO has the stages 0, 1, 2 and 3", stops_run=True)
    return becomes_one_of("parallelism", stages)(value)


_RULES: dict[str, Rule] = {
    STAGE: _parallelism,
    "zero_optimization.offload_optimizer.device": unless_set(_STATE, stops=True),
    "zero_optimization.offload_param.device": unless_set(_WEIGHTS, stops=True),
    "zero_optimization.cpu_offload": unless_set(_STATE, stops=True),
    **dict.fromkeys(
        ("zero_optimization.zero_quantized_weights", "zero_optimization.zero_quantized_gradients"),
        unless_set("lorafit exchanges whole numbers, never rounded ones", stops=True),
    ),
    "zero_optimization.zero_hpz_partition_size": anyway(
        1, reason="every process has its share", otherwise="all processes share, over all machines"
    ),
    # -- The step
    "gradient_accumulation_steps": becomes("gradient_accumulation_steps"),
    "gradient_clipping": becomes("max_grad_norm"),
    "train_batch_size": becomes("effective_batch_size"),
    "train_micro_batch_size_per_gpu": becomes("per_device_train_batch_size"),
    "bf16.enabled": switches("compute_dtype", "bfloat16", off="compute_dtype says which"),
    "fp16.enabled": switches("compute_dtype", "float16", off="compute_dtype says which"),
    "optimizer.type": becomes_one_of("optim", _OPTIMIZERS),
    "optimizer.params.lr": becomes("learning_rate"),
    "optimizer.params.weight_decay": becomes("weight_decay"),
    "optimizer.params.betas": anyway(
        [0.9, 0.999], reason="AdamW has them here", otherwise="AdamW has 0.9 and 0.999 here",
        stops=True,
    ),
    "optimizer.params.eps": anyway(
        1e-8, reason="AdamW has it here", otherwise="AdamW has 1e-8 here", stops=True
    ),
    "optimizer.params.adam_w_mode": anyway(
        True, reason="AdamW decays weights so", otherwise="lorafit has no Adam with L2", stops=True
    ),
    "optimizer.params.torch_adam": ignored("it names an implementation"),
    "scheduler.type": unless_set(_SCHEDULE, stops=True),
    "activation_checkpointing.cpu_checkpointing": unless_set(_OFFLOADS, stops=True),
    # -- Words and records
    **dict.fromkeys(
        ("steps_per_print", "wall_clock_breakdown", "dump_state", "memory_breakdown"),
        ignored("events.jsonl has every step"),
    ),
    **dict.fromkeys(
        ("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
        ignored("the optimizer is torch's or bitsandbytes' own"),
    ),
}  # fmt: skip

_SECTIONS: dict[str, Rule] = {
    "zero_optimization": ignored(_BUFFERS),
    "fp16": ignored("PyTorch's loss scaler finds its own scale"),
    "bf16": ignored(_BUFFERS),
    "scheduler": ignored(_SCHEDULE),
    "activation_checkpointing": ignored("gradient_checkpointing says which layers"),
    "comms_logger": ignored("lorafit keeps records of its own"),
    "flops_profiler": ignored("lorafit counts operations itself"),
    **dict.fromkeys(
        ("tensorboard", "wandb", "csv_monitor"), ignored("report_to names the trackers")
    ),
}
"""Of keys in a section that have no rule of their own."""


def deepspeed_outcome(key: str, value: Plain) -> Outcome:
    """Return what a dotted key of a DeepSpeed configuration is here; `auto` says nothing."""
    if value == "auto":
        return Kept("the launched program decides")
    rule = _RULES.get(key) or _SECTIONS.get(key.partition(".")[0])
    if rule is not None:
        return rule(value)
    if is_off(value):
        return Kept("it is off")
    return Lost(f"{NO_SETTING} (the value: {excerpt(show_value(value), 60)})")
