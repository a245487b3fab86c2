"""How each project is started on the workload, and where it leaves its losses."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peers import workload as work
from peers.workload import Workload

SCRIPTS = Path(__file__).absolute().parent / "scripts"


@dataclass(frozen=True)
class Start:
    """What a command is made from."""

    python: Path
    workload: Workload
    folder: Path
    """An empty folder for what the run writes."""
    caches: Path
    """Where the project may keep what would make its next start quicker."""

    def tool(self, name: str) -> str:
        """Return the path of a command that the environment installs."""
        return str(self.python.parent / name)

    def prepared(self, name: str) -> Path:
        """Return a folder beside the workload, kept between the rounds."""
        return self.workload.folder / name


Losses = dict[int, float]
"""The loss of each optimizer step, as the project reports it, by the step's number from 1."""


# -- lorafit itself --------------------------------------------------------------------------


def lorafit(kernels: str, *, packing: bool = False) -> Callable[[Start], list[str]]:
    """Return how `lorafit train` itself is started."""

    def command(start: Start) -> list[str]:
        settings = {
            "model": start.workload.model,
            "data": start.workload.prompts,
            "output_dir": start.folder / "output",
            "kernels": kernels,
            **({"packing": "true"} if packing else {}),
            "validation_split": 0,
            "max_length": work.MAX_LENGTH,
            "per_device_train_batch_size": work.MICRO_BATCH,
            "gradient_accumulation_steps": work.ACCUMULATION,
            "num_train_epochs": 1,
            "learning_rate": work.LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0,
            "lora_r": work.LORA_R,
            "lora_alpha": work.LORA_ALPHA,
            "lora_dropout": 0,
            "target_modules": ",".join(work.TARGETS),
            "compute_dtype": "float32",
            "gradient_checkpointing": "false",
            "seed": work.SEED,
            "device": "cpu",
        }
        return [
            str(start.python),
            "-m",
            "lorafit",
            "train",
            *(f"{name}={value}" for name, value in settings.items()),
        ]

    return command


def lorafit_losses(folder: Path) -> Losses:
    """Return the losses of events.jsonl."""
    lines = (folder / "output" / "events.jsonl").read_text().splitlines()
    return {int(step["step"]): float(step["loss"]) for step in map(json.loads, lines)}


# -- Scripts of this folder ------------------------------------------------------------------


def script(name: str, *more: str) -> Callable[[Start], list[str]]:
    """Return how a script of this folder is started."""

    def command(start: Start) -> list[str]:
        paths = (SCRIPTS / name, start.workload.model, start.workload.prompts)
        arguments = [str(start.python), *map(str, paths), str(start.folder / "output")]
        return [*arguments, str(work.LEARNING_RATE), *more]

    return command


def trainer_losses(folder: Path) -> Losses:
    """Return the losses of any trainer that is built on transformers' and saves its state."""
    states = sorted(folder.rglob("trainer_state.json"), key=lambda path: path.stat().st_mtime)
    history = json.loads(states[-1].read_text())["log_history"]
    return {int(entry["step"]): float(entry["loss"]) for entry in history if "loss" in entry}


# -- LitGPT ----------------------------------------------------------------------------------


def prepare_litgpt(start: Start) -> list[str] | None:
    """Convert the model to LitGPT's format, once."""
    target = start.prepared("litgpt-model")
    if (target / "tokenizer_config.json").is_file():
        return None
    script = str(SCRIPTS / "convert_for_litgpt.py")
    return [str(start.python), script, str(start.workload.model), str(target)]


def litgpt(start: Start) -> list[str]:
    """Start `litgpt finetune_lora`."""
    optimizer = {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": work.LEARNING_RATE, "weight_decay": 0.0},
    }
    options = {
        "out_dir": start.folder / "output",
        "precision": "32-true",
        "lora_r": work.LORA_R,
        "lora_alpha": work.LORA_ALPHA,
        "lora_dropout": 0.0,
        "lora_key": "true",
        "lora_projection": "true",
        "lora_mlp": "true",
        "data": "JSON",
        "data.json_path": start.workload.instructions,
        "data.mask_prompt": "true",
        # The style without any text around the prompt has no short name.
        "data.prompt_style": json.dumps({"class_path": "litgpt.prompts.Default"}),
        "data.num_workers": 0,
        "train.global_batch_size": work.MICRO_BATCH * work.ACCUMULATION,
        "train.micro_batch_size": work.MICRO_BATCH,
        "train.epochs": 1,
        "train.max_seq_length": work.MAX_LENGTH,
        "train.lr_warmup_steps": 1,
        "eval.interval": 1_000_000,
        "eval.max_new_tokens": 1,
        "eval.final_validation": "false",
        "optimizer": json.dumps(optimizer),
    }
    checkpoint = str(start.prepared("litgpt-model"))
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [start.tool("litgpt"), "finetune_lora", checkpoint, *flags]


def litgpt_losses(folder: Path) -> Losses:
    """Return the losses that LitGPT prints: a step's is the mean over its micro-batches."""
    pattern = re.compile(r"step (\d+) \| loss train: ([\d.]+).*\(step\)")
    found = pattern.findall((folder / "stdout.txt").read_text())
    return {int(step): float(loss) for step, loss in found}


# -- LLaMA-Factory, ms-swift, Axolotl --------------------------------------------------------


def llama_factory(start: Start) -> list[str]:
    """Start `llamafactory-cli train`."""
    data = start.folder / "data"
    data.mkdir()
    rows = {
        "file_name": str(start.workload.instructions / "train.json"),
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }
    (data / "dataset_info.json").write_text(json.dumps({"rows": rows}))
    options = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(start.workload.model),
        "finetuning_type": "lora",
        "lora_rank": work.LORA_R,
        "lora_alpha": work.LORA_ALPHA,
        "lora_dropout": 0.0,
        "lora_target": ",".join(work.TARGETS),
        "dataset": "rows",
        "dataset_dir": str(data),
        "template": "empty",
        "cutoff_len": work.MAX_LENGTH,
        "overwrite_cache": True,
        "preprocessing_num_workers": None,
        "disable_gradient_checkpointing": True,
        "flash_attn": "sdpa",
        **_trainer_options(start),
    }
    return [start.tool("llamafactory-cli"), "train", _write_yaml(start, options)]


def _trainer_options(start: Start) -> dict[str, Any]:
    """Return the options that tools built on transformers' Trainer pass on to it."""
    return {
        "output_dir": str(start.folder / "output"),
        "per_device_train_batch_size": work.MICRO_BATCH,
        "gradient_accumulation_steps": work.ACCUMULATION,
        "num_train_epochs": 1,
        "learning_rate": work.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "report_to": "none",
        "seed": work.SEED,
    }


def swift(start: Start) -> list[str]:
    """Start `swift sft`."""
    options = {
        "model": start.workload.model,
        "model_type": "phi2",
        "template": "dummy",
        "dataset": start.workload.messages,
        "tuner_type": "lora",
        "lora_rank": work.LORA_R,
        "lora_alpha": work.LORA_ALPHA,
        "lora_dropout": 0,
        "torch_dtype": "float32",
        "attn_impl": "sdpa",
        "max_length": work.MAX_LENGTH,
        "split_dataset_ratio": 0,
        "gradient_checkpointing": "false",
        "dataloader_num_workers": 0,
        "dataset_num_proc": 1,
        "add_version": "false",
        **_trainer_options(start),
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", _flag(value))]
    targets = ["--target_modules", *work.TARGETS]
    return [start.tool("swift"), "sft", *flags, *targets]


def swift_losses(folder: Path) -> Losses:
    """Return the losses of ms-swift's log, which counts steps as `3/32`."""
    lines = (folder / "output" / "logging.jsonl").read_text().splitlines()
    steps = [entry for entry in map(json.loads, lines) if "loss" in entry]
    return {
        int(entry["global_step/max_steps"].partition("/")[0]): float(entry["loss"])
        for entry in steps
    }


def _flag(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def axolotl(packing: bool) -> Callable[[Start], list[str]]:
    """Return how `axolotl train` is started."""

    def command(start: Start) -> list[str]:
        options = {
            "base_model": str(start.workload.model),
            "adapter": "lora",
            "lora_r": work.LORA_R,
            "lora_alpha": work.LORA_ALPHA,
            "lora_dropout": 0.0,
            "lora_target_modules": list(work.TARGETS),
            # These kernels fail on Phi.
            "lora_qkv_kernel": False,
            "lora_o_kernel": False,
            "lora_mlp_kernel": False,
            "datasets": [
                {
                    "path": str(start.workload.instructions / "train.json"),
                    "ds_type": "json",
                    "type": {
                        "field_instruction": "instruction",
                        "field_output": "output",
                        "format": "{instruction}",
                        "no_input_format": "{instruction}",
                    },
                }
            ],
            "dataset_prepared_path": str(start.folder / "prepared"),
            "val_set_size": 0.0,
            "train_on_inputs": False,
            "sequence_len": work.MAX_LENGTH,
            "sample_packing": packing,
            "sdp_attention": True,
            "micro_batch_size": work.MICRO_BATCH,
            "gradient_accumulation_steps": work.ACCUMULATION,
            "num_epochs": 1,
            "optimizer": "adamw_torch",
            "learning_rate": work.LEARNING_RATE,
            "lr_scheduler": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "bf16": False,
            "fp16": False,
            "tf32": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "dataloader_num_workers": 0,
            "dataset_processes": 1,
            "output_dir": str(start.folder / "output"),
            "seed": work.SEED,
        }
        axolotl = [start.tool("axolotl"), "train", _write_yaml(start, options)]
        return [*axolotl, "--launcher", "python"]

    return command


def _write_yaml(start: Start, options: dict[str, Any]) -> str:
    path = start.folder / "config.yaml"
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return str(path)


def printed_losses(folder: Path) -> Losses:
    """Return the losses that transformers' Trainer prints, for tools that save no state."""
    text = (folder / "stdout.txt").read_text() + (folder / "stderr.txt").read_text()
    found = re.findall(r"\{'loss': '?([\d.]+(?:e-?\d+)?)", text)
    return {step: float(loss) for step, loss in enumerate(found, start=1)}
