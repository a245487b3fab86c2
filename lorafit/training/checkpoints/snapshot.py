"""A training's whole state, written to the folder of a checkpoint and read back."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from lorafit.errors import CheckpointError
from lorafit.model.adapter import write_adapter_config
from lorafit.training.checkpoints import layout, state

if TYPE_CHECKING:
    from peft import PeftModel

    from lorafit.training.guard.oom import MemoryRecovery

# What settings say about an optimizer's parameter groups; the rest of a group is its own state.
_FROM_SETTINGS = ("initial_lr", "weight_decay")


@dataclass(frozen=True)
class Snapshot:
    """The objects that have state; `scaler` only with float16."""

    model: "PeftModel"
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    scaler: Any
    recovery: "MemoryRecovery"

    def write(self, folder: Path) -> None:
        """Write everything but the Trainer's own counters."""
        weights = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(tensors, folder / layout.ADAPTER_WEIGHTS, metadata={"format": "pt"})
        # Nothing here reads it: it makes the checkpoint of an unfinished run an adapter for anyone.
        write_adapter_config(self.model, folder)
        state.save_optimizer(self.optimizer, folder)
        state.save_plain(self.scheduler.state_dict(), folder / layout.SCHEDULER_FILE)
        state.save_rng(folder)
        state.save_plain(self.recovery.state, folder / layout.RECOVERY_FILE)
        if self.scaler is not None:
            state.save_plain(self.scaler.state_dict(), folder / layout.SCALER_FILE)

    def load_optimizer(self, folder: Path) -> None:
        """Restore optimizer, schedule and micro-batch limits.

        The learning rate is set from the schedule of this command at the step that was reached.
        For an unchanged run that is the saved rate; an extended one goes on by its new curve.
        """
        groups = self.optimizer.param_groups
        asked = [{name: group[name] for name in _FROM_SETTINGS} for group in groups]
        state.load_optimizer(self.optimizer, folder)
        base_rates = list(self.scheduler.base_lrs)
        self.scheduler.load_state_dict(state.load_plain(folder / layout.SCHEDULER_FILE))
        self.scheduler.base_lrs = base_rates
        step = self.scheduler.last_epoch
        factors = [factor(step) for factor in self.scheduler.lr_lambdas]
        rates = [rate * factor for rate, factor in zip(base_rates, factors, strict=True)]
        for group, settings, rate in zip(self.optimizer.param_groups, asked, rates, strict=True):
            group.update(settings, lr=rate)
        self.scheduler._last_lr = rates
        if (folder / layout.RECOVERY_FILE).exists():
            self.recovery.restore(state.load_plain(folder / layout.RECOVERY_FILE))

    def load_scaler(self, folder: Path) -> None:
        """Restore the loss scaler, where there is one."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state.load_plain(folder / layout.SCALER_FILE))


def load_weights(model: "PeftModel", folder: Path) -> None:
    """Put a checkpoint's adapter into the model.

    Raises:
        CheckpointError: it is another adapter's.
    """
    weights = load_file(folder / layout.ADAPTER_WEIGHTS)
    outcome = set_peft_model_state_dict(model, weights)
    absent = [name for name in outcome.missing_keys if "lora_" in name]
    if absent or outcome.unexpected_keys:
        raise CheckpointError(
            f"does not hold this adapter: {len(absent)} tensors are missing and "
            f"{len(outcome.unexpected_keys)} are of something else",
            where=str(folder),
        )
