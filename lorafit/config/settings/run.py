"""Where the run is kept and shown, on what it runs, when it validates, saves and stops."""

from typing import Literal

from lorafit.config.settings.declare import Int, SettingsGroup, Text, at_most, setting


class RunSettings(SettingsGroup):
    """The settings of the group `Run`."""

    output_dir: Text = setting(
        "outputs/run", "folder of the run: records, checkpoints, adapter", preset=False
    )
    logging_steps: Int = setting(
        10,
        "a line is printed every so many steps (events.jsonl has every step)",
        ge=1,
        le=10**9,
        recommended=at_most(100, "the screen shows little of how training goes"),
    )
    eval_steps: Int = setting(
        500,
        "validation every so many steps, and at the end",
        ge=1,
        le=10**9,
        recommended=at_most(5000, "overfitting is seen late"),
    )
    save_steps: Int = setting(
        100,
        "a checkpoint every so many steps",
        ge=1,
        le=10**9,
        recommended=at_most(1000, "a run that is killed loses up to that many steps"),
    )
    save_total_limit: Int = setting(
        3,
        "newest checkpoints kept, and the best by validation loss; older ones are removed",
        ge=1,
        le=10_000,
    )
    load_best_model_at_end: bool = setting(
        False,
        "make the adapter from the checkpoint with the lowest validation loss, not from the last "
        "step; a validation that is the best so far is then saved too",
    )
    on_oom: Literal["recover", "fail"] = setting(
        "recover",
        "when memory runs out: recover repeats the step with half the micro-batch, fail stops",
    )
    device: Text = setting(
        "auto", "device to train on: auto, cuda, cuda:1, mps or cpu", preset=False
    )
    parallelism: Literal["auto", "ddp", "fsdp"] = setting(
        "auto",
        "what several processes do with the frozen base weights; ddp: each holds all of them; "
        "fsdp: each holds its share and gathers a layer while it is computed; auto: ddp where the "
        "run fits a device, else fsdp",
    )
    ddp_timeout: Int = setting(
        600,
        "seconds without progress after which a run of several processes is ended: one of them "
        "hangs, or its machine is gone",
        ge=5,
        le=86_400,
    )
    early_stopping_patience: Int | None = setting(
        None,
        "stop after so many validations in a row without a new lowest loss; none: never",
        ge=1,
        le=10_000,
    )
    sample_prompts: Int = setting(
        3,
        "validation prompts that the model answers at each validation, kept in samples.jsonl; 0: "
        "none",
        ge=0,
        le=64,
    )
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio", "none"], ...] = setting(
        ("tensorboard",),
        "trackers that get the curves: tensorboard writes OUTPUT_DIR/tensorboard; the others need "
        "their extra, as in lorafit[wandb]; none: no tracker",
    )
