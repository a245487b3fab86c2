"""GGUF by llama.cpp's own converter, which knows the architectures and their tokenizers best."""

import subprocess
import sys
from pathlib import Path

from lorafit.errors import InputError, StorageError, UsageError
from lorafit.text import excerpt

SCRIPT = "convert_hf_to_gguf.py"


def find_converter(path: Path) -> Path:
    """Return the converter in a llama.cpp folder, or the path if it is the script itself.

    Raises:
        UsageError: there is no converter.
    """
    script = path / SCRIPT if path.is_dir() else path
    if script.is_file() and script.name == SCRIPT:
        return script
    raise UsageError(
        f"--gguf {excerpt(str(path))}: there is no {SCRIPT}",
        hint="git clone https://github.com/ggml-org/llama.cpp, then: --gguf PATH/llama.cpp",
    )


def convert_to_gguf(script: Path, model: Path, output: Path, kind: str) -> None:
    """Convert a model folder; the file appears only when the converter succeeded.

    Args:
        script: llama.cpp's converter, run by the Python that runs this.
        model: a folder with config.json, tokenizer and safetensors.
        output: the file to write.
        kind: its number format, such as `f16`, `bf16` or `q8_0`.

    Raises:
        StorageError: `output` exists.
        InputError: the converter failed; its last words are in the message.
    """
    if output.exists():
        raise StorageError("exists, and is not replaced", where=str(output))
    staging = output.with_name(f".staging-{output.name}")
    command = [sys.executable, str(script), str(model), "--outfile", str(staging)]
    try:
        ended = subprocess.run(
            [*command, "--outtype", kind],
            capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if ended.returncode or not staging.is_file():
            raise _failed(script, model, ended)
        staging.replace(output)
    finally:
        staging.unlink(missing_ok=True)


def _failed(script: Path, model: Path, ended: "subprocess.CompletedProcess[str]") -> InputError:
    lines = [line.strip() for line in (ended.stderr or ended.stdout).splitlines()]
    said = next((line for line in reversed(lines) if line), "it said nothing")
    requirements = script.parent / "requirements.txt"
    is_missing = "No module named" in said
    return InputError(
        f"llama.cpp's converter failed (exit status {ended.returncode}): {excerpt(said, 300)}",
        where=str(script),
        hint=f"install what it needs: pip install -r {requirements}"
        if is_missing
        else f"it may not know this architecture or tokenizer; the weights in {model} are whole",
    )
