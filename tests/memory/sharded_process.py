"""One of two processes that hold a tiny model's base weights together, and watch its storages.

Started by test_trace_sharding.py: `sharded_process.py RANK FOLDER`; the question lies in
FOLDER/question.json, and what process 0 saw goes to FOLDER/seen.json.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._fully_shard import _fsdp_param

from lorafit.config.schema import Settings
from lorafit.memory.events import Category
from lorafit.memory.trace import trace_steps
from lorafit.memory.tracer import StorageTracer
from lorafit.model.build import add_adapter
from lorafit.training.processes.sharding import shard

NUM_PROCESSES = 2


class ResizeTracer(StorageTracer):
    """A tracer that also sees storages come and go by being resized, as FSDP does it."""

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take note of what is there already."""
        for tensor in tensors:
            self._watch(getattr(tensor, "_local_tensor", tensor))

    def alloc_storage(self, tensor: torch.Tensor) -> None:
        """Stand for `_fsdp_param.alloc_storage`."""
        storage = tensor.untyped_storage()
        if storage.size() == 0:
            storage.resize_(tensor.numel() * tensor.element_size())
            self._numbers[storage._cdata] = self.trace.birth(storage.size(), Category.WEIGHTS)

    def free_storage(self, tensor: torch.Tensor) -> None:
        """Stand for `_fsdp_param.free_storage`."""
        storage = tensor.untyped_storage()
        if storage.size():
            storage.resize_(0)
            self.trace.death(self._numbers[storage._cdata])


def build(question: dict[str, Any]) -> tuple[Any, Settings]:
    """Return the adapted model, its frozen weights held by both processes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**question["config"])
    settings = Settings(**question["settings"])
    base = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=settings.attn_implementation
    )
    model, _ = add_adapter(base, settings)
    shard(model, init_device_mesh("cpu", (NUM_PROCESSES,)), torch.device("cpu"))
    return model, settings


def main(rank: int, folder: Path) -> None:
    """Train two steps, and write down the storages that were seen."""
    store = distributed.FileStore(str(folder / "store"), NUM_PROCESSES)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=NUM_PROCESSES)
    model, settings = build(json.loads((folder / "question.json").read_text("utf-8")))
    shards = [
        parameter._local_tensor.untyped_storage().nbytes()
        for parameter in model.parameters()
        if hasattr(parameter, "_local_tensor")
    ]
    tracer = ResizeTracer("cpu")
    tracer.know((*model.parameters(), *model.buffers()))
    start = len(tracer.trace.events)
    with (
        mock.patch.object(_fsdp_param, "alloc_storage", tracer.alloc_storage),
        mock.patch.object(_fsdp_param, "free_storage", tracer.free_storage),
        tracer,
    ):
        optimizer = trace_steps(model, tracer, settings, torch.device("cpu"))
        trace = tracer.finish()
    del optimizer
    if rank == 0:
        events = list(trace.events[start:])
        found = {"shards": shards, "events": events, "sizes": list(trace.sizes)}
        (folder / "seen.json").write_text(json.dumps(found), "utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
