"""How many rows a step takes, in which form, and what is kept in memory of them."""

from typing import Literal

from lorafit.config.settings.declare import Float, Int, Recommended, SettingsGroup, setting


class BatchSettings(SettingsGroup):
    """The settings of the group `Batch and memory`."""

    per_device_train_batch_size: Int = setting(
        8,
        "micro-batch: rows a device takes through one forward and backward pass",
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
        ge=1,
        le=1_048_576,
    )
    padding_free: Literal["auto", "true", "false"] = setting(
        "auto",
        "rows of a micro-batch end to end instead of padded to the longest; a step has the same "
        "rows and gradients; auto: where model and device can",
    )
    packing: bool = setting(
        False,
        "fill bins of max_length tokens with whole rows; micro-batch and effective batch then "
        "count bins, so that a step has more rows and an epoch fewer steps",
    )
    per_device_eval_batch_size: Int | None = setting(
        None,
        "rows a device takes in validation; none: as many as a micro-batch holds",
        ge=1,
        le=4096,
    )
    memory_fraction: Float = setting(
        0.9, "share of the device's memory that a plan may use", gt=0, le=1
    )
    gradient_checkpointing: bool = setting(
        True,
        "keep one activation a layer and compute the rest again in backward: far less memory, "
        "about a third slower",
    )
    checkpointed_layers: Int | None = setting(
        None,
        "with gradient_checkpointing: how many layers, from the first, are computed again; none: "
        "all of them",
        ge=1,
        le=1000,
    )
    torch_compile: bool = setting(True, "compile the model with torch.compile: pays on NVIDIA GPUs")
