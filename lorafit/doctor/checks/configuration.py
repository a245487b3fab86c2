"""Offline state, and the presets that came with lorafit."""

from collections import Counter
from collections.abc import Mapping

from lorafit.doctor.check import Outcome, check, error, ok, warn
from lorafit.doctor.checks.environment import TRUE
from lorafit.doctor.probe import Probe


@check(
    "net.offline",
    "Configuration",
    "Hub access",
    affects="models and data sets that are not on this disk yet cannot be fetched",
)
def hub_access(probe: Probe) -> Outcome:
    """Explain the offline state from the environment; does not touch the network."""
    offline = offline_variables(probe.environ)
    if offline:
        return ok(
            f"offline because {' and '.join(f'{name}=1' for name in offline)}: only local folders "
            "and the cache are used",
            measured="offline",
        )
    endpoint = probe.environ.get("HF_ENDPOINT")
    if endpoint and not endpoint.startswith("https://"):
        return warn(
            f"HF_ENDPOINT={endpoint} is not an https:// address: downloads can be altered on "
            "their way",
            "use an https:// address, or the default",
            "unset HF_ENDPOINT",
            measured=endpoint,
        )
    where = endpoint or "huggingface.co"
    return ok(f"online mode, from {where} (not contacted)", measured="online")


def offline_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the variables that keep the hub's clients from the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    return [name for name in names if environ.get(name, "").strip().lower() in TRUE]


@check(
    "preset.valid",
    "Configuration",
    "Shipped presets",
    affects="`lorafit train --preset` cannot read what came with it: the installation is damaged",
)
def shipped_presets(probe: Probe) -> Outcome:
    """Load every shipped preset."""
    from lorafit.config.presets import list_presets
    from lorafit.errors import LorafitError

    reinstall = "pip install --force-reinstall --no-deps lorafit"
    try:
        names = [preset.name for preset in list_presets()]
    except LorafitError as problem:
        return error(str(problem), "install lorafit anew", reinstall)
    if not names:
        return error("no preset was found", "install lorafit anew", reinstall)
    general = [name for name in names if "/" not in name]
    families = Counter(name.partition("/")[0] for name in names if "/" in name)
    listed = [*general, *(f"{count} of {family}" for family, count in families.items())]
    return ok(f"{len(names)} load: {', '.join(listed)}", measured=str(len(names)))
