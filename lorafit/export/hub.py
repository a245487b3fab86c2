"""A folder on its way to the Hugging Face hub."""

import os
import re
from pathlib import Path

from lorafit.errors import InputError, UsageError
from lorafit.text import excerpt

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def check_push(repo_id: str) -> None:
    """Refuse a push that cannot succeed, before minutes go into the export.

    Raises:
        UsageError: `repo_id` is no name, the hub is switched off, or nobody is logged in.
    """
    from huggingface_hub import constants, get_token

    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise UsageError(
            f"--push {excerpt(repo_id)!r} is not a repository id", hint="--push OWNER/NAME"
        )
    # The library reads the variable once, when it is imported.
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise UsageError("--push needs the hub, and HF_HUB_OFFLINE is set", hint="unset it")
    if get_token() is None:
        raise UsageError(
            "--push needs a login: no token was found", hint="type: hf auth login, or set HF_TOKEN"
        )


def push_folder(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload a folder as a model repository and return its address.

    The token is the one of `hf auth login` or HF_TOKEN, never an argument.

    Raises:
        InputError: the hub refused, or could not be reached; the folder is as it was.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    api = HfApi(library_name="lorafit")
    try:
        # An existing repository keeps the visibility that it has.
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message="Upload from lorafit export"
        )
    except HfHubHTTPError as problem:
        raise _refused(folder, repo_id, problem.server_message or str(problem)) from None
    except (OSError, ValueError, RuntimeError) as problem:
        raise _refused(folder, repo_id, str(problem)) from None
    except Exception as problem:
        # The transport's own errors have no common parent with the ones above.
        if "httpx" not in type(problem).__module__ and "httpcore" not in type(problem).__module__:
            raise
        raise _refused(folder, repo_id, str(problem)) from None
    return str(url)


def _refused(folder: Path, repo_id: str, why: str) -> InputError:
    return InputError(
        f"the hub did not take {repo_id}: {excerpt(why, 200)}",
        hint=f"the export itself is whole; to push it later: hf upload {repo_id} {folder}",
    )
