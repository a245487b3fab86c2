"""Which settings a device cannot honour: asked before anything is loaded."""

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from typing import Protocol

from lorafit.errors import DeviceError
from lorafit.hardware.info import Choice, DeviceInfo

_CUDA_ONLY_OPTIMIZERS = {
    "adamw_8bit": "bitsandbytes' 8-bit AdamW is made for CUDA",
    "paged_adamw_8bit": "paged optimizers need CUDA's unified memory",
    "paged_adamw_32bit": "paged optimizers need CUDA's unified memory",
}
_MIN_BITSANDBYTES_OFF_CUDA = (0, 50)
"""The first release whose 4-bit products run on CPU and Metal."""


class DeviceSettings(Protocol):
    """The settings that depend on the device."""

    @property
    def quantization(self) -> str: ...  # noqa: D102  # as in the settings schema
    @property
    def use_dora(self) -> bool: ...  # noqa: D102
    @property
    def optim(self) -> str: ...  # noqa: D102
    @property
    def attn_implementation(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Unsupported:
    """A setting that the device cannot honour: why, and what to use in its place."""

    setting: str
    value: str
    why: str
    alternative: str

    def __str__(self) -> str:
        return f"{self.setting} {self.value}: {self.why}"


def check_supported(device: DeviceInfo, settings: DeviceSettings) -> list[Unsupported]:
    """Return every setting that `device` cannot honour; empty when all is well.

    A device that is only planned for is judged by its hardware: packages may differ there.
    """
    found = (
        _check_optimizer(device, settings.optim),
        _check_quantization(device, settings.quantization, settings.use_dora),
        _check_attention(device, settings.attn_implementation),
    )
    return [problem for problem in found if problem is not None]


def verify_supported(device: DeviceInfo, settings: DeviceSettings) -> None:
    """Raise when `device` cannot honour a setting.

    Raises:
        DeviceError: lists every such setting with its reason, and the alternatives as the hint.
    """
    problems = check_supported(device, settings)
    if problems:
        raise DeviceError(
            f"{device.name} ({device.torch_device}) cannot run these settings:\n"
            + "\n".join(f"  {problem}" for problem in problems),
            hint="use " + " and ".join(problem.alternative for problem in problems),
        )


def _check_optimizer(device: DeviceInfo, optim: str) -> Unsupported | None:
    why = _CUDA_ONLY_OPTIMIZERS.get(optim)
    if device.kind == "cuda" or why is None:
        return None
    return Unsupported("optim", optim, f"{why}, not {device.kind}", "--optim adamw_torch")


def _check_quantization(
    device: DeviceInfo, quantization: str, use_dora: bool
) -> Unsupported | None:
    if quantization == "none":
        return None
    if quantization == "int8" and device.kind == "mps":
        why = "bitsandbytes has no int8 products for Metal"
        return Unsupported("quantization", "int8", why, "--quantization nf4 (or none)")
    if quantization == "int8" and use_dora and device.kind == "cpu":
        why = (
            "use_dora reads whole weights, and on a CPU PEFT loses the scales of int8 ones by that"
        )
        return Unsupported("quantization", "int8", why, "--quantization nf4 (or none)")
    if not device.detected:
        return None
    version = bitsandbytes_version()
    if version is None:
        why = "bitsandbytes is not installed"
        return Unsupported(
            "quantization",
            quantization,
            why,
            '--quantization none, or `pip install "bitsandbytes>=0.50"`',
        )
    if device.kind != "cuda" and version < _MIN_BITSANDBYTES_OFF_CUDA:
        installed = ".".join(map(str, version))
        why = f"bitsandbytes {installed} quantizes on CUDA only, 0.50 and later also elsewhere"
        return Unsupported(
            "quantization",
            quantization,
            why,
            '--quantization none, or `pip install -U "bitsandbytes>=0.50"`',
        )
    return None


def _check_attention(device: DeviceInfo, attention: str) -> Unsupported | None:
    alternative = "--attn-implementation sdpa"
    if attention == "sdpa-efficient" and device.kind != "cuda":
        why = f"the memory-efficient kernel exists for CUDA only, not {device.kind}"
        return Unsupported("attn_implementation", attention, why, alternative)
    if attention != "flash_attention_2":
        return None
    if device.kind != "cuda" or (device.compute_capability or (0, 0)) < (8, 0):
        why = f"FlashAttention 2 needs a CUDA GPU of capability 8.0 or later, not {device.name}"
    elif device.detected and importlib.util.find_spec("flash_attn") is None:
        why = "the package flash-attn is not installed"
    else:
        return None
    return Unsupported("attn_implementation", attention, why, alternative)


def bitsandbytes_version() -> tuple[int, ...] | None:
    """Return the release of the installed bitsandbytes, such as (0, 50, 2), or None."""
    try:
        text = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        return None
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else (0,)


def effective_torch_compile(device: DeviceInfo, requested: bool, is_explicit: bool) -> Choice[bool]:
    """Return whether to compile the model, and why.

    Args:
        device: where the model will run.
        requested: the `torch_compile` setting.
        is_explicit: a person asked for it by flag, override or own file: not by preset or default.
    """
    if not requested:
        return Choice(False, "torch_compile is off")
    if device.kind == "cuda":
        return Choice(True, "torch_compile pays on CUDA")
    if is_explicit:
        return Choice(True, f"torch_compile was asked for, though it rarely pays on {device.kind}")
    why = {
        "cpu": "on a CPU the large products dominate, and compiling brought no gain",
        "mps": "torch.compile for Metal is incomplete",
    }[device.kind]
    return Choice(False, f"torch_compile is off: {why}; --torch-compile turns it on")
