"""The base model: which, in which number format, with which kernels."""

from typing import Literal

from lorafit.config.settings.declare import SettingsGroup, Text, setting

AttnImplementation = Literal["auto", "eager", "sdpa", "sdpa-efficient", "flash_attention_2"]


class ModelSettings(SettingsGroup):
    """The settings of the group `Model`."""

    model: Text = setting(
        "microsoft/phi-2", "base model: a hub id or a local folder with safetensors"
    )
    revision: Text | None = setting(
        None, "branch, tag or commit of a hub model; none: the default branch"
    )
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "number format of weights and products; auto: the best the device supports"
    )
    quantization: Literal["none", "nf4", "int8"] = setting(
        "none", "number format of the frozen base weights: none, nf4 (4 bit) or int8"
    )
    double_quant: bool = setting(
        True, "nf4 only: quantize the scales too, saves about 0.4 bit a parameter"
    )
    attn_implementation: AttnImplementation = setting(
        "auto", "attention operator; auto: sdpa, PyTorch's fused attention"
    )
    kernels: Literal["lorafit", "stock"] = setting(
        "lorafit",
        "training kernels; lorafit: same numbers from less memory; stock: unmodified transformers "
        "and PEFT",
    )
