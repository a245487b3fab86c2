"""What planning does for grpo and dpo before it reads data: the extra, the settings, the file."""

import importlib.util
from dataclasses import replace

from lorafit.config.layers import Origin, Resolved
from lorafit.config.method_rules import DEFAULT_BETA, turned_by_method
from lorafit.config.schema import Settings
from lorafit.errors import UsageError
from lorafit.training.rl.rewards import RewardFile, read_reward_file

INSTALL = 'pip install "lorafit[rl]"'


def prepare_method(resolved: Resolved, num_devices: int) -> tuple[Resolved, RewardFile | None]:
    """Return the settings as the method needs them, and the reward file, read but not run.

    Raises:
        UsageError: TRL is not installed, several devices are asked for, or the reward file is not
            named on the command line.
        InputError: the reward file cannot be used.
    """
    settings = resolved.settings
    if settings.method == "sft":
        return resolved, None
    require_trl(settings.method)
    if num_devices > 1:
        raise UsageError(
            f"method {settings.method} trains on one device, and {num_devices} are asked for",
            hint="--gpus 0",
        )
    rewards = read_reward_file(resolved) if settings.method == "grpo" else None
    turned = {
        name: choice.value
        for name, choice in turned_by_method(settings).items()
        if not resolved.is_explicit(name)
    }
    origin = Origin("default", f"method {settings.method}")
    return (
        replace(
            resolved,
            settings=settings.model_copy(update=turned),
            origins={**resolved.origins, **dict.fromkeys(turned, origin)},
        ),
        rewards,
    )


def require_trl(method: str) -> None:
    """Check that the extra is there.

    Raises:
        UsageError: with the line that installs it.
    """
    if importlib.util.find_spec("trl") is None:
        raise UsageError(
            f"method {method} trains with the package trl, which is not installed", hint=INSTALL
        )


def beta_of(settings: Settings) -> float:
    """Return the weight of the pull towards the model before training."""
    return DEFAULT_BETA[settings.method] if settings.beta is None else settings.beta
