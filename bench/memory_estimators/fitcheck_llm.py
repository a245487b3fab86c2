"""Ask fitcheck-llm (https://pypi.org/project/fitcheck-llm) about every measured run."""

import os
import tempfile
from pathlib import Path

from memory_estimators.runs import MIB, Figures, Run, answer


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        # Its offline mode is a hub cache that already holds the model's config.json; both
        # variables are read when huggingface_hub is imported.
        os.environ["HF_HUB_CACHE"] = cache
        os.environ["HF_HUB_OFFLINE"] = "1"
        answer(lambda run: _estimate(run, Path(cache)))


def _estimate(run: Run, cache: Path) -> Figures:
    import fitcheck  # type: ignore[import-not-found]  # lives in its own environment

    _fill_hub_cache(run, cache)
    report = fitcheck.estimate(
        fitcheck.fetch_model_config(run.hub_id),
        fitcheck.TrainingConfig(
            precision="fp16",
            quantization=run.quantization,
            double_quant=run.double_quant,
            optimizer="adamw",
            optimizer_dtype="fp32",
            batch_size=run.batch_size,
            seq_len=run.seq_len,
            lora_rank=run.lora_r,
            lora_targets=list(run.target_modules),
            grad_checkpoint=run.gradient_checkpointing,
            # Its own measurements call SDPA's memory-efficient kernel "flash".
            flash_attn=run.attention != "eager",
        ),
        fitcheck.get_gpu("t4"),
    )
    return {
        "total": round(report.total_mib * MIB),
        "tensors": round((report.total_mib - report.overhead_mib) * MIB),
    }


def _fill_hub_cache(run: Run, cache: Path) -> None:
    commit = "0" * 40
    repository = cache / f"models--{run.hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / "config.json").write_bytes((run.model_folder / "config.json").read_bytes())


if __name__ == "__main__":
    main()
