"""What is learnt from beside given answers: rewards (grpo) or preferences (dpo)."""

from typing import Literal

from lorafit.config.settings.declare import Float, Int, SettingsGroup, Text, setting


class ReinforcementSettings(SettingsGroup):
    """The settings of the group `Reinforcement learning`."""

    method: Literal["sft", "grpo", "dpo"] = setting(
        "sft",
        "what is learnt from; sft: given answers; grpo: rewards of answers that the model writes; "
        "dpo: pairs of a better and a worse answer; grpo and dpo need the extra `rl`",
    )
    reward_functions: Text | None = setting(
        None,
        "grpo: Python file with the reward functions, FILE.py or FILE.py:name,name; it is your own "
        "code, and the only code that is ever run from a path: only the command line can name it",
        preset=False,
    )
    num_generations: Int = setting(
        8,
        "grpo: answers that are written to each prompt and compared with each other",
        ge=2,
        le=1024,
    )
    max_completion_length: Int = setting(
        256, "grpo: tokens of an answer at most", ge=1, le=1_048_576
    )
    temperature: Float = setting(
        1.0,
        "grpo: divides the logits when answers are written; higher: answers differ more",
        gt=0,
        le=10,
    )
    beta: Float | None = setting(
        None,
        "pull towards the model before training: grpo's weight of the KL divergence (none: 0, no "
        "pull), dpo's scale of the rewards (none: 0.1)",
        ge=0,
        le=100,
    )
