"""The adapter at the end of a run: which step's it is, written, and read back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import StorageError
from lorafit.files import plain_os_errors, storage_errors
from lorafit.training.checkpoints.checkpoint import vanished
from lorafit.training.checkpoints.retention import best_checkpoint, own_checkpoints
from lorafit.training.planning.run_plan import RunPlan

if TYPE_CHECKING:
    from peft import PeftModel


def save_final(plan: RunPlan, run_id: str, model: "PeftModel") -> dict[str, Any]:
    """Write the adapter, verify it, and return what the results say of it.

    With `load_best_model_at_end`, the weights are those of the best checkpoint.

    Raises:
        StorageError: it could not be written, or reads back as something else.
        AdapterError: it is not finite, or has no effect.
    """
    run_dir = Path(plan.settings.output_dir)
    if not run_dir.is_dir():
        raise vanished(run_dir, "the adapter could not be written")
    own = own_checkpoints(run_dir, run_id)
    best = best_checkpoint(own)
    source = own[-1] if own else None
    from lorafit.training.checkpoints.snapshot import load_weights

    if plan.settings.load_best_model_at_end and best is not None:
        source = best
        load_weights(model, best.folder)
    _write(plan, model, run_dir / "adapter")
    return {
        "adapter_step": source.step if source else plan.schedule.total_steps,
        "best_checkpoint": None if best is None else best.folder.name,
        "best_checkpoint_validation_loss": None if best is None else best.validation_loss,
    }


def _write(plan: RunPlan, model: "PeftModel", adapter: Path) -> None:
    from lorafit.model.adapter import save_adapter

    hint = "every checkpoint written so far is intact: free space, then run the same command again"
    with storage_errors("the adapter could not be written", adapter, hint), plain_os_errors():
        save_adapter(model, adapter)
        verify_reload(model, adapter)


def verify_reload(model: "PeftModel", adapter: Path) -> None:
    """Read an adapter back the way PEFT does and compare it with the model in memory.

    Raises:
        AdapterError: it is not an adapter with finite weights that have an effect.
        StorageError: it is not what was written.
    """
    import torch
    from peft import PeftConfig, get_peft_model_state_dict
    from safetensors.torch import load_file

    from lorafit.model.adapter import verify_adapter
    from lorafit.model.adapter_folder import WEIGHTS_FILE

    verify_adapter(adapter)
    PeftConfig.from_pretrained(str(adapter))
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    found = load_file(adapter / WEIGHTS_FILE)
    wrong = [
        name
        for name in expected.keys() | found.keys()
        if name not in found
        or name not in expected
        or not torch.equal(found[name], expected[name].detach().cpu())
    ]
    if wrong:
        raise StorageError(
            f"what was read back is not what was written: {len(wrong)} tensors differ, first "
            f"{sorted(wrong)[0]}",
            where=str(adapter),
            hint="the disk may be failing; the last checkpoint holds the same weights",
        )
