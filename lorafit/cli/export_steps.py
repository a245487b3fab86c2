"""The steps of `lorafit export`: plan, merge or copy, convert, push, and what is said of each."""

from pathlib import Path
from typing import Any

from lorafit.cli import console
from lorafit.cli.inference import resolve_inference
from lorafit.cli.settings_flags import RunChoices
from lorafit.export.plan import ExportPlan, recorded_run, require_new_folder, require_space
from lorafit.text import escape_control, shell_word


def plan_export(
    adapter: Path, output: Path, flags: dict[str, str | bool], *, with_gguf: bool
) -> ExportPlan:
    """Return what is to be exported, once it is known that it can be.

    Args:
        adapter: the adapter's folder.
        output: folder that is to be made.
        flags: settings that win over those of the run.
        with_gguf: whether a GGUF file needs space too.

    Raises:
        StorageError: the folder is not empty, or the disk too full.
        AdapterError: the adapter is damaged or no adapter.
        ModelError: the base model is not there.
    """
    from lorafit.model.libraries import prepare_libraries
    from lorafit.model.source import locate_model

    require_new_folder(output)
    resolved, device, folder = resolve_inference(RunChoices(flags=flags), str(adapter))
    assert folder is not None
    prepare_libraries()
    from lorafit.model.adapter import verify_adapter

    verify_adapter(folder)
    source = locate_model(resolved.settings.model, resolved.settings.revision)
    require_space(output, source, with_gguf=with_gguf)
    return ExportPlan(resolved.settings, device, source, folder, output, recorded_run(folder))


def merge(plan: ExportPlan) -> dict[str, Any]:
    """Merge into the base, say how far the merged model is from it, return what was made."""
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
    merged = export_merged(plan, _prompts(plan), lambda drift: model_card(plan, drift))
    console.say(describe_drift(merged.drift))
    return {
        "kind": "merged",
        "output_dir": str(merged.folder),
        "dtype": merged.dtype,
        "dequantized": merged.was_quantized,
        "drift": merged.drift.as_dict(),
    }


def _stored(plan: ExportPlan) -> str:
    assert plan.source.weights is not None
    return plan.source.weights.stored_dtype


def _prompts(plan: ExportPlan) -> list[str]:
    """Return what the run's samples end with: the texts that the adapter was made for."""
    from lorafit.report.html.source import read_samples

    last = {one.prompt: one.prompt + one.completion for one in read_samples(plan.adapter.parent)}
    return list(last.values())[:8]


def copy(plan: ExportPlan) -> dict[str, Any]:
    """Export the adapter alone, with a card, and return what was made."""
    from lorafit.export.adapter_only import export_adapter
    from lorafit.export.card import model_card

    export_adapter(plan, model_card(plan))
    return {"kind": "adapter", "output_dir": str(plan.output)}


def convert(plan: ExportPlan, llama_cpp: str, kind: str) -> Path:
    """Convert the merged model with llama.cpp's own script and return the GGUF file."""
    from lorafit.export.gguf import convert_to_gguf, find_converter

    name = f"{plan.output.resolve().name}.gguf"
    console.say(f"converting to GGUF ({kind}) ...")
    script = find_converter(Path(llama_cpp).expanduser())
    convert_to_gguf(script, plan.output, plan.output / name, kind)
    return plan.output / name


def write_modelfile(plan: ExportPlan, gguf: str | None) -> Path:
    """Write Ollama's Modelfile for the merged weights or the GGUF file and return its path."""
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


def push(plan: ExportPlan, repo_id: str, *, private: bool) -> str:
    """Upload the export and return its address."""
    from lorafit.export.hub import push_folder

    console.say(f"uploading to {repo_id} ...")
    return push_folder(plan.output, repo_id, private=private)


def say_next(plan: ExportPlan, document: dict[str, Any], *, merge: bool) -> None:
    """Say what to type next with what was made."""
    where = shell_word(plan.output)
    if "url" in document:
        console.say(f"pushed: {escape_control(document['url'])}")
    console.say("next:")
    if "modelfile" in document:
        console.say(f"  cd {where} && ollama create my-model -f Modelfile && ollama run my-model")
    elif merge:
        console.say(f"  lorafit chat --model {where}")
    else:
        console.say(f"  lorafit export --adapter {where} --push OWNER/NAME --no-merge")
