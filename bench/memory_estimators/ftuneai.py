"""Ask ftuneai (https://pypi.org/project/ftuneai) about every measured run."""

from memory_estimators.runs import GIB, Figures, Run, answer

# It counts two MLP matrices instead of three unless the activation is named. The published files
# name it; the shortened ones here leave out what is the default of the architecture.
LLAMA_DEFAULTS = {"hidden_act": "silu"}


def _estimate(run: Run) -> Figures:
    import ftuneai  # type: ignore[import-not-found]  # lives in its own environment
    import ftuneai.hub as hub  # type: ignore[import-not-found]

    # None of these models is in its table, and it reads others from the hub alone: its own reader
    # gets the file from the disk instead.
    hub.fetch_model_config = lambda name: LLAMA_DEFAULTS | run.config
    memory = ftuneai.Estimator(
        model=run.hub_id,
        method="lora" if run.quantization == "none" else "qlora",
        quantization="none" if run.quantization == "none" else "4bit",
        batch_size=run.batch_size,
        seq_length=run.seq_len,
        gradient_checkpointing=run.gradient_checkpointing,
        optimizer="adamw",
        lora_rank=run.lora_r,
        lora_alpha=run.lora_alpha,
        lora_target="attention_all",
        flash_attention=run.attention != "eager",
    ).estimate_memory()
    return {"total": round(memory.total_gb * GIB)}


if __name__ == "__main__":
    answer(_estimate)
