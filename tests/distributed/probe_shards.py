"""One of two processes that share a model's base weights: what it holds, and what it computes."""

import json
from pathlib import Path

import torch
from torch import distributed

from lorafit.config.schema import Settings
from lorafit.hardware.processes import Processes
from lorafit.model.build import add_adapter, load_base
from lorafit.model.source import locate_model
from lorafit.training.processes.distributed import World
from lorafit.training.processes.sharding import in_turn, open_mesh, shard


def main(rank: str, port: str, folder: str, quantization: str, out: str) -> None:
    """Load, share, and write the bytes of base weights before and after, and the losses."""
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2
    )
    settings = Settings(model=folder, quantization=quantization, lora_dropout=0)
    device = torch.device("cpu")
    mesh = open_mesh("cpu", 60)
    found = {}

    def load():
        base = load_base(settings, locate_model(folder, None), torch.float32, device)
        model, _ = add_adapter(base, settings)
        found["whole_bytes"], found["loss"] = _held_bytes(model), _loss(model)
        shard(model, mesh, device)
        return model

    model = in_turn(load, World(Processes(int(rank), 2, int(rank), 2)))
    found["held_bytes"], found["sharded_loss"] = _held_bytes(model), _loss(model)
    # What was gathered for the passes is given up again.
    found["held_after_bytes"] = _held_bytes(model)
    Path(out).write_text(json.dumps(found))
    distributed.destroy_process_group()


def _held_bytes(model):
    """Return the bytes of storage behind the frozen parameters of this process."""
    local = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()
             if not p.requires_grad]  # fmt: skip
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}
    return sum(storages.values())


def _loss(model):
    tokens = torch.arange(10, 30)[None]
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return float(loss)
