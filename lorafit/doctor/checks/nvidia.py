"""NVIDIA GPUs beyond the one that trains: their health, and whether several work together."""

from lorafit.doctor.check import Outcome, check, error, ok, skip, warn
from lorafit.doctor.isolated import ProofError, ProofTimeoutError
from lorafit.doctor.probe import Probe
from lorafit.hardware.cuda import Gpu, GpuReport, describe_gpus


@check(
    "gpu.health",
    "Device",
    "GPU health",
    affects="memory errors give wrong results; heat and MIG cost speed, MIG memory too",
)
def gpu_health(probe: Probe) -> Outcome:
    """Check ECC errors, temperature, slowdowns and MIG mode of every GPU; changes nothing."""
    report = probe.nvidia()
    if report is None or not report.gpus:
        return skip("no NVIDIA GPU here")
    faulty = [index for index, gpu in enumerate(report.gpus) if gpu.num_ecc_errors]
    if faulty:
        return error(
            f"uncorrected memory errors on GPU {', '.join(map(str, faulty))}",
            "restart the machine; a GPU with new errors after that needs service",
            "nvidia-smi -q -d ECC",
        )
    temperatures = "; ".join(
        f"GPU {index} {gpu.state.temperature}" for index, gpu in enumerate(report.gpus)
    )
    troubles = [text for index, gpu in enumerate(report.gpus) for text in _troubles(index, gpu)]
    if troubles:
        return warn(
            "; ".join(troubles),
            "see to cooling and power; until then steps take longer than they could",
            "nvidia-smi -q -d TEMPERATURE,PERFORMANCE",
            measured=temperatures,
        )
    mig = "MIG is on: a process sees one slice; " if any(g.mig_enabled for g in report.gpus) else ""
    return ok(
        f"{mig}no memory errors, nothing slows them down; {describe_gpus(report.gpus)}; "
        f"{temperatures}",
        measured=temperatures,
    )


def _troubles(index: int, gpu: Gpu) -> list[str]:
    """Return what makes a GPU slower than it is."""
    if gpu.state.slowed_by:
        slowed_by = " and ".join(gpu.state.slowed_by)
        return [f"GPU {index} is slowed down by {slowed_by} ({gpu.state.temperature})"]
    if gpu.state.is_near_slowdown:
        return [f"GPU {index} is about to slow down: {gpu.state.temperature}"]
    return []


@check(
    "gpu.multi",
    "Device",
    "Several GPUs",
    affects="CUDA and nvidia-smi may count the GPUs differently: another one is used than meant",
)
def several_gpus(probe: Probe) -> Outcome:
    """Check whether the GPUs are alike, counted as nvidia-smi does, and reach each other."""
    report = probe.nvidia()
    if report is None or not report.gpus:
        return skip("no NVIDIA GPU here")
    if len(report.gpus) == 1:
        return skip("there is one NVIDIA GPU")
    names = {gpu.name for gpu in report.gpus}
    count, paths = str(len(report.gpus)), _paths(report)
    if len(names) == 1:
        return ok(f"{count} of {names.pop()}{paths}", measured=count)
    listed = describe_gpus(report.gpus)
    largest = max(range(len(report.gpus)), key=lambda index: report.gpus[index].usable_bytes)
    if probe.environ.get("CUDA_VISIBLE_DEVICES") and probe.environ.get("CUDA_DEVICE_ORDER"):
        return ok(f"{listed}; CUDA_VISIBLE_DEVICES chooses{paths}", measured=count)
    return warn(
        f"the GPUs differ: {listed}{paths}",
        "name the one to train on; a run on unlike GPUs waits for the slowest",
        f"export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={largest}",
        measured=count,
    )


def _paths(report: GpuReport) -> str:
    """Return which pairs of GPUs have to talk through the host's memory, where any do."""
    if not report.separate_pairs:
        return ""
    listed = ", ".join(f"{left}-{right}" for left, right in report.separate_pairs[:6])
    more = len(report.separate_pairs) - 6
    others = f" and {more} more" if more > 0 else ""
    return f"; no direct way between {listed}{others}: gradients go through the host's memory"


@check(
    "gpu.nccl",
    "Device",
    "GPUs work together",
    affects="a run on several GPUs hangs in its first step, or learns from wrong sums",
)
def gpus_work_together(probe: Probe) -> Outcome:
    """Sum numbers over all visible GPUs with NCCL, in a process of its own."""
    device = probe.usable_device()
    if device is None or device.kind != "cuda":
        return skip("no NVIDIA GPU is used")
    if device.num_devices < 2:
        return skip("one NVIDIA GPU can be seen: nothing is sent between GPUs")
    try:
        answer = probe.proof("nccl")
    except ProofTimeoutError as late:
        return warn(
            f"{device.num_devices} GPUs were not proved to work together: {late}",
            "where it hangs with more time too, keep GPUs from writing to each other's memory",
            "lorafit doctor --check gpu.nccl --timeout 60",
            "NCCL_P2P_DISABLE=1 lorafit doctor --check gpu.nccl --timeout 60",
        )
    except ProofError as failure:
        return error(
            f"{device.num_devices} GPUs do not work together: {failure}",
            "train on one of them, or look for the cause in what NCCL says",
            "CUDA_VISIBLE_DEVICES=0 lorafit train …",
            "NCCL_DEBUG=INFO lorafit doctor --check gpu.nccl --timeout 60",
        )
    measured = f"NCCL {answer['version']}, {answer['gpus']} GPUs"
    if answer["wrong_gpus"]:
        listed = ", ".join(map(str, answer["wrong_gpus"]))
        return error(
            f"{measured}: a sum over them is wrong on GPU {listed}",
            "do not train on several GPUs here: memory is lost on the way between them",
            "CUDA_VISIBLE_DEVICES=0 lorafit train …",
            measured=measured,
        )
    return ok(f"{measured}: a sum over all of them is right", measured=measured)
