"""The adapter: its rank, scale, dropout and places."""

from typing import Annotated

from pydantic import AfterValidator

from lorafit.config.settings.declare import Float, Int, Recommended, SettingsGroup, Text, setting


def _default_for_all(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """PEFT's `all-linear` is what no name means here."""
    return None if names == ("all-linear",) else names


_Targets = Annotated[tuple[Text, ...] | None, AfterValidator(_default_for_all)]


class LoraSettings(SettingsGroup):
    """The settings of the group `LoRA`."""

    lora_r: Int = setting(
        8,
        "rank of the LoRA update of each target module",
        ge=1,
        le=256,
        recommended=Recommended(
            low=8,
            high=32,
            below="the adapter may lack the capacity to learn the task",
            above="the adapter grows and overfits sooner; usually without a gain",
        ),
    )
    lora_alpha: Float = setting(
        32.0,
        "scale of the update, which is multiplied by lora_alpha / lora_r; usually 2 to 4 x lora_r",
        gt=0,
        le=4096,
    )
    lora_dropout: Float = setting(
        0.05,
        "share of the inputs of each LoRA module that is dropped in training",
        ge=0,
        lt=1,
        recommended=Recommended(
            low=0.03,
            high=0.1,
            below="less regularization: watch the validation loss",
            above="learning slows down: much of each update is noise",
        ),
    )
    target_modules: _Targets = setting(
        None,
        "names of the Linear modules that get an adapter; none or all-linear: every one in a layer",
        min_length=1,
    )
    modules_to_save: tuple[Text, ...] = setting(
        (), "names of modules that are trained and saved whole, beside the adapter"
    )
    use_rslora: bool = setting(
        False, "scale by lora_alpha / sqrt(lora_r), which keeps high ranks stable"
    )
    use_dora: bool = setting(False, "weight-decomposed LoRA: learns magnitudes too, slower")
