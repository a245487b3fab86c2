"""How long and how fast is learnt, and by which optimizer."""

from typing import Literal

from lorafit.config.settings.declare import Float, Int, Recommended, SettingsGroup, at_most, setting


class OptimizationSettings(SettingsGroup):
    """The settings of the group `Optimization`."""

    learning_rate: Float = setting(
        2e-4,
        "peak learning rate, reached at the end of the warm-up",
        gt=0,
        le=1,
        recommended=Recommended(
            low=5e-5,
            high=2e-4,
            below="learning is slow: the run may end underfitted",
            above="training may become unstable",
        ),
    )
    num_train_epochs: Float = setting(20.0, "passes over the training data", gt=0, le=10_000)
    max_steps: Int | None = setting(
        None,
        "optimizer steps; overrides num_train_epochs",
        ge=1,
        le=10**9,
        recommended=at_most(100_000, "few runs gain from so many steps: watch validation loss"),
    )
    warmup_ratio: Float = setting(
        0.05,
        "share of all steps in which the learning rate rises from 0 to its peak",
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
        None, "warm-up in steps; overrides warmup_ratio", ge=0, le=10**9
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = setting("cosine", "course of the learning rate after the warm-up")
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "sgd",
        "adafactor",
    ] = setting("adamw_torch", "optimizer")
    weight_decay: Float = setting(0.0, "AdamW's decoupled weight decay", ge=0, le=1)
    max_grad_norm: Float = setting(
        1.0, "gradients are scaled down to this norm; 0: no clipping", ge=0, le=1e6
    )
    label_smoothing_factor: Float = setting(
        0.0, "share of each target spread over the vocabulary", ge=0, lt=1
    )
    seed: Int = setting(42, "seed of data order, dropout and adapters", ge=0, le=2**32 - 1)
