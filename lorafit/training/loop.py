"""A trainer's loop inside of a run: who hears of it, and how a signal ends it."""

from collections.abc import Sequence
from typing import Any

from lorafit.errors import RunInterruptedError
from lorafit.report.records import RunObserver
from lorafit.training.guard.signals import StopRequest
from lorafit.training.run_folder.folder import Start


def train_to_end(
    trainer: Any,
    start: Start,
    total_steps: int,
    observers: Sequence[RunObserver],
    stop: StopRequest,
) -> None:
    """Let transformers' trainer take the steps that are left, from the checkpoint if there is one.

    Raises:
        RunInterruptedError: a signal asked to stop, and a checkpoint was saved.
    """
    stop.begin_saving()
    for observer in observers:
        observer.on_start(total_steps, start.step)
    try:
        trainer.train(
            resume_from_checkpoint=str(start.checkpoint.folder) if start.checkpoint else None
        )
    finally:
        for observer in observers:
            observer.on_end()
    step = trainer.state.global_step
    if stop.received is not None and step < total_steps:
        raise RunInterruptedError(
            f"{stop.received.name} received: saved at step {step} of {total_steps}",
            hint="run the same command again to go on from there",
        )
