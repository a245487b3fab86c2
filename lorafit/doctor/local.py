"""Model folders that are on this disk already: the doctor downloads nothing."""

from pathlib import Path

from lorafit.errors import ModelError
from lorafit.text import excerpt


def local_model(name: str, cache: Path) -> Path:
    """Return the folder of a model: the folder itself, or a hub id's snapshot in the hub's cache.

    Args:
        name: a folder or a hub id.
        cache: folder of the hub's cache, `HF_HOME`.

    Raises:
        ModelError: there is no such folder, and no snapshot in the cache.
    """
    folder = Path(name).expanduser()
    if folder.exists() or name.startswith((".", "/", "~")):
        return folder  # `locate_model` says what is wrong with it
    snapshot = _newest_snapshot(cache / "hub" / f"models--{name.replace('/', '--')}")
    if snapshot is None:
        raise ModelError(
            f"the model {excerpt(name)} is not on this disk",
            hint=f"hf download {excerpt(name)} --include '*.safetensors' '*.json' '*.txt'",
        )
    return snapshot


def _newest_snapshot(repository: Path) -> Path | None:
    """Return the snapshot that `main` names, else the one that was changed last."""
    snapshots = repository / "snapshots"
    if not snapshots.is_dir():
        return None
    reference = repository / "refs" / "main"
    if reference.is_file():
        named = snapshots / reference.read_text(encoding="utf-8").strip()
        if named.is_dir():
            return named
    found = [path for path in snapshots.iterdir() if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
