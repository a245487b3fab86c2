"""Whether rows may reach the model end to end, as far as the settings alone say."""

from lorafit.config.schema import Settings


def wants_no_padding(settings: Settings) -> bool:
    """Return whether rows are to go without padding, asked for or left to the device."""
    return settings.packing or settings.padding_free != "false"


def wants_block_attention(settings: Settings) -> bool:
    """Return whether rows may go end to end, each kept apart by the attention function."""
    fused = settings.attn_implementation in ("auto", "sdpa")
    return settings.kernels == "lorafit" and fused and wants_no_padding(settings)
