"""Model folders from the Hugging Face hub: cached first, then downloaded, never executed."""

import os
import socket
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from lorafit.errors import ModelError
from lorafit.text import excerpt

Needs = Literal["weights", "tokenizer", "config"]

# No *.bin, *.py or *.pt: what is not downloaded cannot be loaded by mistake.
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
_PATTERNS: dict[Needs, list[str]] = {
    "weights": [*_SMALL_FILES, "*.safetensors"],
    "tokenizer": _SMALL_FILES,
    "config": ["config.json"],
}
_PROOF: dict[Needs, str] = {
    "weights": "*.safetensors",
    "tokenizer": "tokenizer*",
    "config": "config.json",
}
"""What a snapshot must hold: an interrupted download leaves a folder without it."""
_CONNECT_TIMEOUT_SECONDS = 4.0
_ANSWER_TIMEOUT_SECONDS = 5.0


def download_model(
    name: str, revision: str | None, *, needs: Needs = "weights"
) -> tuple[Path, str | None]:
    """Return the local snapshot folder of a hub model and its commit.

    A snapshot in the hub's cache is used without asking the network, if it holds what is needed;
    what is not needed is not downloaded.

    Raises:
        ModelError: the model is not cached and the hub cannot be reached, does not have it, or
            does not give it to this person.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = _PATTERNS[needs]
    cached = _cached_snapshot(name, revision, needs)
    if cached is not None:
        return cached, cached.name
    _require_network(name)
    try:
        # One short question: the download itself would wait and retry for minutes.
        HfApi().model_info(name, revision=revision, timeout=_ANSWER_TIMEOUT_SECONDS)
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise ModelError(
            f"{name} is gated: its owner must accept you first",
            hint=f"ask for access on the hub page of {name}, then type: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{name} has no revision {excerpt(str(revision))}") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"the hub has no model {name}, or it is private",
            hint=_meant(name) + "check the spelling; for a private model type: hf auth login",
        ) from None
    except Exception as problem:  # the hub's errors, the system's, and those of the HTTP library
        raise _unreachable(name, excerpt(str(problem)) or type(problem).__name__) from None
    return folder, folder.name


def _cached_snapshot(name: str, revision: str | None, needs: Needs) -> Path | None:
    """Return the snapshot folder if what is needed of it is in the cache already."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=_PATTERNS[needs], local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    has_proof = any(folder.glob(_PROOF[needs]))
    return folder if (folder / "config.json").exists() and has_proof else None


def _require_network(name: str) -> None:
    """Fail within seconds, not after minutes of retries, where there is no way to the hub."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise _unreachable(name, "HF_HUB_OFFLINE is set, so nothing is downloaded")
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return  # a proxy resolves the name: a direct connection proves nothing
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    address = (endpoint.hostname or "huggingface.co", endpoint.port or 443)
    try:
        socket.create_connection(address, timeout=_CONNECT_TIMEOUT_SECONDS).close()
    except OSError as problem:
        raise _unreachable(name, f"{address[0]}: {problem}") from None


def _meant(name: str) -> str:
    """Return a guess at the model, as a line before the hint: `phi-2` is not a hub id."""
    from lorafit.model.architectures import bundled_config, bundled_models

    if bundled_config(name) is not None:
        return ""

    def plain(model: str) -> str:
        return "".join(filter(str.isalnum, model.rpartition("/")[2].lower()))

    guess = next((known for known in bundled_models() if plain(known) == plain(name)), None)
    return f"did you mean {guess}?\n" if guess else ""


def _unreachable(name: str, why: str) -> ModelError:
    return ModelError(
        f"the model {name} is not on this machine and the hub cannot be reached ({why})",
        hint=f"{_meant(name)}where there is a network, type: "
        f"hf download {name} --local-dir FOLDER\nthen here: --model FOLDER",
    )
