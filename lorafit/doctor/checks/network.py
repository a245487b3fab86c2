"""The way to the hub, and who one is there. Values of tokens are never printed."""

import os
import socket
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from lorafit.doctor.check import Outcome, check, error, ok, skip, warn
from lorafit.doctor.checks.configuration import offline_variables
from lorafit.doctor.checks.filesystem import owner_only
from lorafit.doctor.probe import Probe

_TIMEOUT_SECONDS = 5.0
_EARLIEST = datetime(2025, 1, 1, tzinfo=UTC)
"""No release of lorafit is older: an earlier clock is wrong."""


@check(
    "net.hub",
    "Configuration",
    "Hub answers",
    affects="models and data sets that are not on this disk cannot be fetched",
)
def hub_answers(probe: Probe) -> Outcome:
    """Look the hub's name up, connect and verify its certificate; only with --deep."""
    if not probe.question.is_deep:
        return skip("only with --deep: the doctor does not use the network otherwise")
    offline = offline_variables(probe.environ)
    if offline:
        return skip(f"{offline[0]} is set: nothing is fetched anyway")
    proxy = probe.environ.get("HTTPS_PROXY") or probe.environ.get("https_proxy")
    if proxy:
        return skip("a proxy stands between (HTTPS_PROXY), which looks names up itself")
    address = urlsplit(probe.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host, is_plain = address.hostname or "huggingface.co", address.scheme == "http"
    port = address.port or (80 if is_plain else 443)
    started = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS) as connection:
            if not is_plain:
                with ssl.create_default_context().wrap_socket(connection, server_hostname=host):
                    pass
    except ssl.SSLError as problem:
        return error(
            f"{host} answers, but its certificate is refused: {problem.reason or problem}",
            "a proxy may replace certificates: name its certificate; or the clock is wrong",
            "export REQUESTS_CA_BUNDLE=/path/to/ca.pem",
        )
    except OSError as problem:
        return warn(
            f"{host}:{port} cannot be reached: {problem}",
            "train from local folders, or name a proxy",
            "export HF_HUB_OFFLINE=1",
            "export HTTPS_PROXY=http://proxy:3128",
        )
    measured = f"{1000 * (time.monotonic() - started):.0f} ms"
    return ok(f"{host} answers in {measured}", measured=measured)


@check(
    "auth.token",
    "Configuration",
    "Hub token",
    affects="gated models, such as Llama and Gemma, are given to known people only",
)
def hub_token(probe: Probe) -> Outcome:
    """Check whether there is a token and who may read it; never shows it."""
    variable = next((n for n in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if probe.environ.get(n)), "")
    file = _token_file(probe)
    if variable:
        if probe.environ[variable] != probe.environ[variable].strip():
            return warn(
                f"{variable} has blanks around the token",
                "set it again, without them",
                f"unset {variable}",
                "hf auth login",
            )
        return ok(f"from the variable {variable}", measured="variable")
    if not file.is_file():
        return ok("none: enough for Phi-2 and other open models", measured="none")
    if not owner_only(file):
        mode = f"{file.stat().st_mode & 0o777:o}"
        return warn(
            f"{file} can be read by others (mode {mode})",
            "keep it to yourself",
            f"chmod 600 {file}",
            measured=mode,
            required="600",
        )
    return ok(f"from {file}, which only its owner can read", measured="file")


def _token_file(probe: Probe) -> Path:
    return Path(probe.environ.get("HF_TOKEN_PATH") or probe.huggingface_home() / "token")


@check(
    "clock",
    "System",
    "Clock",
    affects="with a wrong date every certificate is refused, and runs cannot be put in order",
)
def clocks(probe: Probe) -> Outcome:
    """Check that the date is plausible and that the steady clock runs forward."""
    now = datetime.now(UTC)
    before = time.monotonic()
    time.sleep(0.002)
    if time.monotonic() <= before:
        return error("the steady clock does not run", "restart the machine or container")
    shown = now.isoformat(timespec="minutes")
    if now < _EARLIEST:
        is_mac = probe.platform == "darwin"
        return error(
            f"the date is {shown}",
            "set the clock from the network",
            "sudo sntp -sS time.apple.com" if is_mac else "sudo timedatectl set-ntp true",
            measured=shown,
            required=f"after {_EARLIEST:%Y}",
        )
    zone = os.environ.get("TZ")
    return ok(f"{shown}{f', TZ={zone}' if zone else ''}", measured=shown)
