"""The whole way, for real: train, save, be killed, resume, compare; only with --deep."""

from lorafit.doctor.check import Outcome, check, error, ok, skip
from lorafit.doctor.probe import Probe
from lorafit.doctor.selftest import SelfTestError, run_selftest


@check(
    "selftest",
    "Device",
    "Train, kill, resume",
    affects="a run that is interrupted here could not go on as if nothing had happened",
)
def train_kill_resume(probe: Probe) -> Outcome:
    """Train two LoRA steps of a tiny model whole, and once more with a kill in between."""
    if not probe.question.is_deep:
        return skip("only with --deep")
    device = probe.usable_device()
    if device is None:
        return skip("no device can be used")
    try:
        result = run_selftest(device.torch_device, probe.python, probe.timeout_seconds * 0.9)
    except SelfTestError as failure:
        return error(
            f"on {device.torch_device}: {failure}",
            "keep this report, and see device.init, ram.total and disk.semantics",
            "lorafit doctor --deep --json > doctor.json",
        )
    losses = ", ".join(f"{loss:.4f}" for loss in result.losses)
    detail = f"two LoRA steps on {device.torch_device} (losses {losses})"
    if result.num_different:
        return error(
            f"{detail}: killed after the first and resumed, {result.num_different} of "
            f"{result.num_numbers} adapter numbers differ",
            "resumed runs are close, not equal, here; try fixed workspaces and plain attention",
            "export CUBLAS_WORKSPACE_CONFIG=:4096:8",
            "lorafit train --attn-implementation eager …",
            measured=f"{result.num_different} differ",
            required="0",
        )
    return ok(
        f"{detail}: killed after the first and resumed, all {result.num_numbers:,} adapter numbers "
        "are equal to the last bit",
        measured=f"{result.num_numbers} equal",
    )
