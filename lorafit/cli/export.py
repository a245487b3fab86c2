"""`lorafit export`: an adapter out into the world: merged, carded, converted, pushed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lorafit.cli import console
from lorafit.cli.options import AdapterInsteadOfRun, Json, OptionalRun, flags_of, refuse_empty
from lorafit.errors import UsageError
from lorafit.text import escape_control

SCHEMA_VERSION = 1
_OUT = "What comes out"
_BASE = "Which base"

OutputDir = Annotated[
    str | None,
    typer.Option(
        help="New folder for the export; RUN/merged (RUN/export with --no-merge).",
        metavar="DIR",
        show_default=False,
    ),
]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge/--no-merge",
        help="Merge into the base, or export the adapter alone.",
        rich_help_panel=_OUT,
    ),
]
Push = Annotated[
    str | None,
    typer.Option(
        help="Upload to this hub repository; log in with `hf auth login` or HF_TOKEN.",
        metavar="OWNER/NAME",
        rich_help_panel=_OUT,
    ),
]
Private = Annotated[
    bool,
    typer.Option(
        "--private/--public", help="Visibility of a new repository.", rich_help_panel=_OUT
    ),
]
Gguf = Annotated[
    str | None,
    typer.Option(
        help="llama.cpp's folder: its converter writes a GGUF file.",
        metavar="LLAMA_CPP",
        rich_help_panel=_OUT,
    ),
]
GgufType = Annotated[
    Literal["f32", "f16", "bf16", "q8_0", "auto"],
    typer.Option(help="Number format of the GGUF file.", rich_help_panel=_OUT),
]
Ollama = Annotated[
    bool,
    typer.Option(
        "--ollama", help="Write a Modelfile with the run's prompt format.", rich_help_panel=_OUT
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="Base model, if not the run's.", metavar="TEXT", rich_help_panel=_BASE),
]
Quantization = Annotated[
    Literal["none", "nf4", "int8"] | None,
    typer.Option(
        help="none: merge into the original weights although the run quantized them.",
        rich_help_panel=_BASE,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where the comparison runs.", metavar="NAME", rich_help_panel=_BASE),
]


def command(
    run: OptionalRun = None,
    adapter: AdapterInsteadOfRun = None,
    output_dir: OutputDir = None,
    merge: Merge = True,
    push: Push = None,
    private: Private = True,
    gguf: Gguf = None,
    gguf_type: GgufType = "auto",
    ollama: Ollama = False,
    model: Model = None,
    quantization: Quantization = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Export an adapter: merged into its base, with a model card, to a folder, hub or Ollama.

    The merged weights are read back and compared with base plus adapter before the folder appears;
    nothing that exists is replaced.

    Examples:
      lorafit export outputs/first

      lorafit export outputs/first --no-merge --push me/my-adapter

      lorafit export outputs/first --gguf ~/llama.cpp --gguf-type q8_0 --ollama
    """
    given = {"RUN": run, "--adapter": adapter, "--output-dir": output_dir}
    refuse_empty(given, hint="lorafit export outputs/first")
    folder = _adapter_of(run, adapter)
    _check_outcomes(push, gguf, merge=merge, ollama=ollama)
    from lorafit.cli import export_steps as steps
    from lorafit.export.plan import DEFAULT_NAMES

    default = folder.parent / DEFAULT_NAMES[0 if merge else 1]
    plan = steps.plan_export(
        folder,
        Path(output_dir) if output_dir else default,
        flags_of(model=model, quantization=quantization, device=device),
        with_gguf=merge and gguf is not None,
    )
    document: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    document |= steps.merge(plan) if merge else steps.copy(plan)
    if gguf is not None:
        document["gguf"] = str(steps.convert(plan, gguf, gguf_type))
    if ollama:
        document["modelfile"] = str(steps.write_modelfile(plan, document.get("gguf")))
    if push is not None:
        document["url"] = steps.push(plan, push, private=private)
    if as_json:
        console.print_json(document)
    else:
        console.out(escape_control(str(plan.output)))
    steps.say_next(plan, document, merge=merge)


def _adapter_of(run: str | None, adapter: str | None) -> Path:
    if (run is None) == (adapter is None):
        raise UsageError(
            "name the run or the adapter" + ("" if run is None else ", not both"),
            hint="lorafit export outputs/first, or lorafit export --adapter DIR",
        )
    return Path(adapter) if adapter else Path(str(run)) / "adapter"


def _check_outcomes(push: str | None, gguf: str | None, *, merge: bool, ollama: bool) -> None:
    """Refuse what cannot come out, before anything is loaded."""
    if not merge and (gguf is not None or ollama):
        raise UsageError(
            "--gguf and --ollama are of merged weights, and --no-merge makes none",
            hint="leave --no-merge out",
        )
    if push is not None:
        from lorafit.export.hub import check_push

        check_push(push)
    if gguf is not None:
        from lorafit.export.gguf import find_converter

        find_converter(Path(gguf).expanduser())
