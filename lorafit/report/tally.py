"""What the summary of a run needs, kept from the passing steps."""

from pathlib import Path
from typing import Any

from lorafit.report.records import StepRecord


class Tally:
    """Counts tokens and keeps first, last and best as a run's observer."""

    def __init__(self) -> None:
        self.first: StepRecord | None = None
        self.last: StepRecord | None = None
        self.tokens = 0
        self.seconds = 0.0
        self.peak_memory_bytes = 0
        self.first_reward: float | None = None
        self.last_reward: float | None = None
        self.validation_losses: list[tuple[int, float]] = []
        self.checkpoints: list[int] = []

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Nothing to count yet."""

    def on_step(self, record: StepRecord) -> None:
        """Count the step."""
        self.first = self.first or record
        self.last = record
        self.tokens += record.tokens
        self.seconds += record.seconds
        self.peak_memory_bytes = max(self.peak_memory_bytes, record.memory_reserved_bytes)
        reward = record.reward if record.reward is not None else record.reward_margin
        if reward is not None:
            self.first_reward = reward if self.first_reward is None else self.first_reward
            self.last_reward = reward
        if record.validation_loss is not None:
            self.validation_losses.append((record.step, record.validation_loss))

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Its result comes with the step."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Remember the step."""
        self.checkpoints.append(step)

    def on_note(self, text: str) -> None:
        """Notes are kept by run.json."""

    def on_end(self) -> None:
        """The summary follows."""

    def results(self) -> dict[str, Any]:
        """Return the figures of the run for run.json and the summary."""
        best = min(self.validation_losses, key=lambda pair: pair[1], default=None)
        return {
            "steps": self.last.step if self.last else None,
            "first_loss": self.first.loss if self.first else None,
            "final_loss": self.last.loss if self.last else None,
            "validation_loss": self.validation_losses[-1][1] if self.validation_losses else None,
            "best_validation_loss": best[1] if best else None,
            "best_validation_step": best[0] if best else None,
            **self._rewards(),
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
            "peak_memory_bytes": self.peak_memory_bytes,
            "checkpoints": self.checkpoints,
        }

    def _rewards(self) -> dict[str, Any]:
        """Return the reward (grpo) or margin (dpo) of the first and the last step, if any."""
        if self.last_reward is None:
            return {}
        return {"first_reward": self.first_reward, "final_reward": self.last_reward}
