"""Ask canifinetune (https://pypi.org/project/canifinetune) about every measured run."""

from memory_estimators.runs import GIB, Figures, Run, answer


def _estimate(run: Run) -> Figures:
    from canifinetune.estimator.memory import (  # type: ignore[import-not-found]  # own environment
        EstimateRequest,
        estimate,
    )

    memory = estimate(
        EstimateRequest(
            model_id=str(run.model_folder),
            method="lora" if run.quantization == "none" else "qlora",
            quantization="nf4_double_quant" if run.double_quant else "nf4",
            base_dtype="fp16",
            seq_len=run.seq_len,
            micro_batch_size=run.batch_size,
            lora_rank=run.lora_r,
            lora_alpha=run.lora_alpha,
            lora_dropout=run.lora_dropout,
            lora_target_scope="attention",
            target_modules=list(run.target_modules),
            optimizer="adamw_torch",
            gradient_checkpointing=run.gradient_checkpointing,
            attention_implementation="eager" if run.attention == "eager" else "sdpa",
            gpu_vram_gb=run.gpu_capacity_bytes / GIB,
            use_network=False,
        )
    ).memory
    budget = memory.total_estimated_gb
    peak = budget - memory.safety_margin_gb
    return {
        "peak": round(peak * GIB),
        "budget": round(budget * GIB),
        "tensors": round((peak - memory.cuda_overhead_gb) * GIB),
    }


if __name__ == "__main__":
    answer(_estimate)
