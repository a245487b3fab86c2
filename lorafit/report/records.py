"""What a run reports while it goes on, and who may listen."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, as a line of events.jsonl."""

    step: int
    loss: float
    """Token mean of the cross-entropy over the effective batch, before the update."""
    learning_rate: float
    """The rate that this step's update used."""
    grad_norm: float
    """Norm of all gradients before clipping."""
    epoch: float
    tokens: int
    """Tokens of the effective batch without padding."""
    supervised_tokens: int
    """Tokens that the loss counts."""
    tokens_per_second: float
    seconds: float
    """Wall time of the step without validation and saving."""
    memory_allocated_bytes: int
    """Peak of the step: CUDA's allocated, MPS's driver-allocated, or the process's memory."""
    memory_reserved_bytes: int
    validation_loss: float | None = None
    reward: float | None = None
    """grpo: mean of the summed rewards over all answers of the step."""
    reward_std: float | None = None
    rewards: dict[str, float] | None = None
    """grpo: mean of each reward function, by its name."""
    kl: float | None = None
    """grpo with beta above 0: mean KL divergence from the model before training, in nats."""
    completion_length: float | None = None
    """grpo: mean tokens of an answer."""
    reward_margin: float | None = None
    """dpo: mean of the chosen answer's reward less the rejected one's."""
    reward_accuracy: float | None = None
    """dpo: share of the pairs whose chosen answer has the higher reward."""

    def as_dict(self) -> dict[str, Any]:
        """Return the record without the fields that do not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class RunObserver(Protocol):
    """Anything that watches a run: the event log, the terminal, a tracker."""

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Training is about to take its first step, `first_step` steps being done already."""

    def on_step(self, record: StepRecord) -> None:
        """An optimizer step is done."""

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Validation after `step` has finished `done` of `total` batches."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint is complete on disk."""

    def on_note(self, text: str) -> None:
        """Something happened that a person should know."""

    def on_end(self) -> None:
        """No more steps follow, for whatever reason."""
