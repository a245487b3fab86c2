"""`lorafit export`: an adapter out into the world: merged, carded, converted, pushed."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lorafit.cli import console
from lorafit.cli.completion import complete_runs
from lorafit.cli.inference import resolve_inference
from lorafit.cli.settings_flags import RunChoices
from lorafit.errors import UsageError
from lorafit.text import escape_control

if TYPE_CHECKING:
    from lorafit.export.merged import MergedModel
    from lorafit.export.plan import ExportPlan

SCHEMA_VERSION = 1
GgufType = Literal["f32", "f16", "bf16", "q8_0", "auto"]
_OUT = "What comes out"
_BASE = "Which base"


def command(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="Output folder of a `lorafit train`.", autocompletion=complete_runs
        ),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter folder, instead of RUN.", metavar="DIR")
    ] = None,
    output_dir: Annotated[
        str | None,
        typer.Option(
            help="New folder for the export; RUN/merged (RUN/export with --no-merge).",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge/--no-merge",
            help="Merge into the base, or export the adapter alone.",
            rich_help_panel=_OUT,
        ),
    ] = True,
    push: Annotated[
        str | None,
        typer.Option(
            help="Upload to this hub repository; log in with `hf auth login` or HF_TOKEN.",
            metavar="OWNER/NAME",
            rich_help_panel=_OUT,
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private/--public", help="Visibility of a new repository.", rich_help_panel=_OUT
        ),
    ] = True,
    gguf: Annotated[
        str | None,
        typer.Option(
            help="llama.cpp's folder: its converter writes a GGUF file.",
            metavar="LLAMA_CPP",
            rich_help_panel=_OUT,
        ),
    ] = None,
    gguf_type: Annotated[
        GgufType, typer.Option(help="Number format of the GGUF file.", rich_help_panel=_OUT)
    ] = "auto",
    ollama: Annotated[
        bool,
        typer.Option(
            "--ollama", help="Write a Modelfile with the run's prompt format.", rich_help_panel=_OUT
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Base model, if not the run's.", metavar="TEXT", rich_help_panel=_BASE),
    ] = None,
    quantization: Annotated[
        Literal["none", "nf4", "int8"] | None,
        typer.Option(
            help="none: merge into the original weights although the run quantized them.",
            rich_help_panel=_BASE,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where the comparison runs.", metavar="NAME", rich_help_panel=_BASE),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Export an adapter: merged into its base, with a model card, to a folder, hub or Ollama.

    The merged weights are read back and compared with base plus adapter before the folder appears;
    nothing that exists is replaced.

    Examples:
      lorafit export outputs/first

      lorafit export outputs/first --no-merge --push me/my-adapter

      lorafit export outputs/first --gguf ~/llama.cpp --gguf-type q8_0 --ollama
    """
    _check_flags(run, adapter, output_dir, push, gguf, merge=merge, ollama=ollama)
    folder = Path(adapter) if adapter else Path(str(run)) / "adapter"
    from lorafit.export.plan import DEFAULT_NAMES

    default = folder.parent / DEFAULT_NAMES[0 if merge else 1]
    output = Path(output_dir) if output_dir else default
    flags: dict[str, str | bool] = {
        name: value
        for name, value in (("model", model), ("quantization", quantization), ("device", device))
        if value is not None
    }
    plan = _plan(folder, output, flags, push=push, gguf=gguf if merge else None)
    document = _merge(plan) if merge else _copy(plan)
    if gguf is not None:
        document["gguf"] = str(_convert(plan, gguf, gguf_type))
    if ollama:
        document["modelfile"] = str(_write_modelfile(plan, document.get("gguf")))
    if push is not None:
        document["url"] = _push(plan, push, private=private)
    if as_json:
        console.print_json({"schema_version": SCHEMA_VERSION, **document})
    else:
        console.out(escape_control(str(plan.output)))
    _say_next(plan, document, merge=merge)


def _check_flags(
    run: str | None,
    adapter: str | None,
    output_dir: str | None,
    push: str | None,
    gguf: str | None,
    *,
    merge: bool,
    ollama: bool,
) -> None:
    for name, value in (("RUN", run), ("--adapter", adapter), ("--output-dir", output_dir)):
        if value == "":
            raise UsageError(f"{name} is empty", hint="lorafit export outputs/first")
    if (run is None) == (adapter is None):
        raise UsageError(
            "name the run or the adapter" + ("" if run is None else ", not both"),
            hint="lorafit export outputs/first, or lorafit export --adapter DIR",
        )
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


def _plan(
    adapter: Path,
    output: Path,
    flags: dict[str, str | bool],
    *,
    push: str | None,
    gguf: str | None,
) -> "ExportPlan":
    from lorafit.export.plan import ExportPlan, recorded_run, require_new_folder, require_space
    from lorafit.model.libraries import prepare_libraries
    from lorafit.model.source import locate_model

    require_new_folder(output)
    resolved, device, folder = resolve_inference(RunChoices(flags=flags), str(adapter))
    assert folder is not None
    prepare_libraries()
    from lorafit.model.adapter import verify_adapter

    verify_adapter(folder)
    source = locate_model(resolved.settings.model, resolved.settings.revision)
    require_space(output, source, with_gguf=gguf is not None)
    return ExportPlan(resolved.settings, device, source, folder, output, recorded_run(folder))


def _merge(plan: "ExportPlan") -> dict[str, Any]:
    from lorafit.export.card import model_card
    from lorafit.export.merged import describe_drift, export_merged

    quantization = plan.settings.quantization
    if quantization != "none":
        console.warn(
            f"the adapter was trained on the base in {quantization}: it is merged into what those "
            f"weights stand for, in {_stored(plan)}; the file is as large as the original model "
            "(--quantization none merges into the original weights)"
        )
    console.say("merging, reading back, comparing ...")
    merged: MergedModel = export_merged(plan, _prompts(plan), lambda drift: model_card(plan, drift))
    console.say(describe_drift(merged.drift))
    return {
        "kind": "merged",
        "output_dir": str(merged.folder),
        "dtype": merged.dtype,
        "dequantized": merged.was_quantized,
        "drift": merged.drift.as_dict(),
    }


def _stored(plan: "ExportPlan") -> str:
    assert plan.source.weights is not None
    return plan.source.weights.stored_dtype


def _prompts(plan: "ExportPlan") -> list[str]:
    """Return what the run's samples end with: the texts that the adapter was made for."""
    from lorafit.report.html.source import read_samples

    last = {one.prompt: one.prompt + one.completion for one in read_samples(plan.adapter.parent)}
    return list(last.values())[:8]


def _copy(plan: "ExportPlan") -> dict[str, Any]:
    from lorafit.export.adapter_only import export_adapter
    from lorafit.export.card import model_card

    export_adapter(plan, model_card(plan))
    return {"kind": "adapter", "output_dir": str(plan.output)}


def _convert(plan: "ExportPlan", llama_cpp: str, kind: str) -> Path:
    from lorafit.export.gguf import convert_to_gguf, find_converter

    name = f"{plan.output.resolve().name}.gguf"
    console.say(f"converting to GGUF ({kind}) ...")
    script = find_converter(Path(llama_cpp).expanduser())
    convert_to_gguf(script, plan.output, plan.output / name, kind)
    return plan.output / name


def _write_modelfile(plan: "ExportPlan", gguf: str | None) -> Path:
    from lorafit.data.chat import load_chat_format
    from lorafit.export.ollama import SAFETENSORS_ARCHITECTURES, PromptFormat, modelfile
    from lorafit.model.tokenizer import tokenizer_of

    tokenizer = tokenizer_of(plan.source)
    is_chat = plan.row_kind == "messages"
    template = load_chat_format(plan.settings, tokenizer).template if is_chat else None
    form = PromptFormat(plan.row_kind, template, str(tokenizer.eos_token))
    text, reason = modelfile(f"./{Path(gguf).name}" if gguf else ".", form)
    path = plan.output / "Modelfile"
    path.write_text(text, encoding="utf-8")
    console.say(f"Modelfile: {reason}")
    if gguf is None and plan.source.model_type not in SAFETENSORS_ARCHITECTURES:
        console.warn(
            f"Ollama reads no safetensors of {escape_control(plan.source.model_type)} models: "
            "add --gguf LLAMA_CPP, and the Modelfile takes the GGUF file"
        )
    return path


def _push(plan: "ExportPlan", repo_id: str, *, private: bool) -> str:
    from lorafit.export.hub import push_folder

    console.say(f"uploading to {repo_id} ...")
    return push_folder(plan.output, repo_id, private=private)


def _say_next(plan: "ExportPlan", document: dict[str, Any], *, merge: bool) -> None:
    where = escape_control(shlex.quote(str(plan.output)))
    if "url" in document:
        console.say(f"pushed: {escape_control(document['url'])}")
    console.say("next:")
    if "modelfile" in document:
        console.say(f"  cd {where} && ollama create my-model -f Modelfile && ollama run my-model")
    elif merge:
        console.say(f"  lorafit chat --model {where}")
    else:
        console.say(f"  lorafit export --adapter {where} --push OWNER/NAME --no-merge")
