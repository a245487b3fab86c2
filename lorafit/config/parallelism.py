"""Whether the processes of a run can share its frozen base weights, as `parallelism` may ask."""

from lorafit.config.layers import COMMAND_LINE_KINDS, Resolved
from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, ExitCode, Problem


def why_not_sharded(settings: Settings) -> str | None:
    """Return why the base weights of a run cannot be shared, or None."""
    if settings.quantization == "int8":
        return (
            "bitsandbytes moves int8 weights out of the parameters that FSDP shards, into a state "
            "of its own"
        )
    return None


def verify_parallelism(resolved: Resolved, num_devices: int) -> None:
    """Refuse a wish for shared weights that cannot be met.

    Raises:
        ConfigError: there is one process, or weights of this kind cannot be shared.
    """
    settings = resolved.settings
    if settings.parallelism != "fsdp":
        return
    if num_devices == 1:
        raise _refusal(
            resolved,
            "fsdp shares the base weights among processes, and there is one",
            "--num-processes 2 or more, or leave parallelism out; --quantization nf4 makes the "
            "weights of one process small",
        )
    obstacle = why_not_sharded(settings)
    if obstacle is not None:
        raise _refusal(
            resolved,
            f"fsdp does not go with quantization {settings.quantization}: {obstacle}",
            "--quantization nf4 or none can be shared; --parallelism ddp keeps all weights in "
            "every process",
        )


def _refusal(resolved: Resolved, message: str, hint: str) -> ConfigError:
    origin = resolved.origins["parallelism"]
    code = ExitCode.USAGE if origin.kind in COMMAND_LINE_KINDS else ExitCode.BAD_INPUT
    return ConfigError([Problem(f"parallelism ({origin})", message, hint)], exit_code=code)
