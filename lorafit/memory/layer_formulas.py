"""What a decoder layer keeps and takes in training, by formulas: bytes a token of the micro-batch.

Derived from what transformers, PEFT and autograd save: a frozen product saves nothing, an adapter
its input in fp32, a norm its input, attention by the operator that runs.

Legend: H hidden size, I MLP's inner size, Q width of all queries, K of all keys, T tokens of a
row, e bytes of the compute dtype, r rank of the adapters.
"""

from typing import Literal, NamedTuple

from lorafit.config.schema import Settings
from lorafit.hardware.info import DeviceKind
from lorafit.memory.architecture import Architecture, Linear
from lorafit.memory.gpu import GpuTraits

Attention = Literal["fused", "efficient", "math", "eager"]


class Run(NamedTuple):
    """The facts of a run that the formulas read."""

    arch: Architecture
    settings: Settings
    gpu: GpuTraits | None
    device_kind: DeviceKind
    itemsize: int
    is_bfloat16: bool

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch of full rows."""
        return self.settings.per_device_train_batch_size * self.settings.max_length

    @property
    def drops(self) -> bool:
        """Adapters drop a share of their inputs."""
        return self.settings.lora_dropout > 0

    @property
    def copies_inputs(self) -> bool:
        """Adapters are fp32: a 16-bit input is converted for each of them."""
        return self.itemsize < 4

    def adapts(self, linear: Linear) -> bool:
        """Return whether a product gets an adapter."""
        targets = self.settings.target_modules
        return targets is None or linear.name in targets


class LayerBytes(NamedTuple):
    """Bytes a token of a decoder layer."""

    stored: float
    """Kept where the layer is checkpointed."""
    saved: float
    """Kept from forward to backward where it is not."""
    forward: float
    """Most that is alive in its forward, what is saved included."""
    backward: float
    """Most that is alive in its backward, what is still saved included."""
    unpacking: float
    """Alive beside a quantized matrix while it is unpacked for the last product."""


def attention_kind(run: Run, *, has_mask: bool = False) -> Attention:
    """Return the attention that runs, as `scaled_dot_product_attention` chooses it."""
    if run.settings.attn_implementation == "eager":
        return "eager"
    if run.gpu is None:
        return "math"
    operator = run.gpu.attention_operator(
        head_dim=run.arch.head_dim,
        is_half=run.itemsize == 2,
        is_bfloat16=run.is_bfloat16,
        has_mask=has_mask,
        grouped=run.arch.num_key_value_heads != run.arch.num_heads and not has_mask,
        efficient_only=run.settings.attn_implementation == "sdpa-efficient",
    )
    return operator if operator in ("math", "efficient") else "fused"


def layer_bytes(run: Run) -> LayerBytes:
    """Return what a layer keeps and takes, in the order of its forward."""
    arch, e = run.arch, run.itemsize
    hidden, inner = arch.hidden_size, arch.intermediate_size
    adapted = {linear.name: run.adapts(linear) for linear in arch.linears}
    query, key, value, out, *up, down = arch.linears
    window = arch.sliding_window
    kind = attention_kind(run, has_mask=window is not None and window < run.settings.max_length)

    norms = e * hidden + 8.0 if arch.has_layer_norm else 4.0 * hidden * arch.num_norms
    if arch.has_query_key_norm:
        norms += 4.0 * (arch.query_size + arch.key_size)
    projections = sum(_adapter_input(run, linear) for linear in (query, key, value))
    attention, attention_backward = attention_bytes(run, kind)
    attention += _adapter_input(run, out)
    first = sum(_adapter_input(run, linear) for linear in up)
    down_input = _adapter_input(run, down)
    activation = _activation_bytes(arch) * e * inner
    mask = (1 if run.gpu else e) * 2 * hidden if arch.residual_dropout else 0
    shared = _shared_inputs(run, any(adapted.values()), kind)
    saved = norms + projections + attention + first + activation + down_input + mask + shared

    # Outputs of an adapter, unscaled and scaled, are fp32; the base product's is not.
    adapter_output = 8.0 if any(adapted.values()) else 0.0
    fp32_input = 4.0 * inner if run.drops and run.copies_inputs else 0.0
    at_down = saved + fp32_input + (adapter_output + e) * hidden
    at_down += e * inner
    at_up = saved - down_input + (adapter_output + e) * inner
    if arch.is_gated:
        at_up -= e * inner
    # The product comes before its adapter in forward, and after it in backward.
    unpacking = saved - down_input + 2 * e * inner
    in_backward = saved + 4.0 * inner + 4.0 * hidden
    before_attention = norms + projections + attention
    in_attention = before_attention + attention_backward
    # bitsandbytes' int8 products keep their inputs as plain attributes, which no checkpoint frees.
    stored = e * hidden + (shared if run.settings.quantization == "int8" else 0)
    return LayerBytes(stored, saved, max(at_down, at_up), max(in_backward, in_attention), unpacking)


def _adapter_input(run: Run, linear: Linear) -> float:
    """Return what an adapter saves: its fp32 input, the mask of its dropout, and A's output."""
    if not run.adapts(linear):
        return 0.0
    rank = 4.0 * run.settings.lora_r
    if run.drops:
        # CUDA keeps a mask of bools; elsewhere the noise is a tensor like the input.
        return (4.0 + (1.0 if run.gpu else 4.0)) * linear.num_inputs + rank
    return rank + (4.0 * linear.num_inputs if run.copies_inputs else 0.0)


def _shared_inputs(run: Run, adapted: bool, kind: Attention) -> float:
    """Return the inputs that products share: saved as they are by fp32 adapters, and by int8."""
    arch, e = run.arch, run.itemsize
    is_int8 = run.settings.quantization == "int8"
    if not is_int8 and (run.copies_inputs or run.drops or not adapted):
        return 0.0
    norm_outputs = (1 if arch.is_parallel else 2) * arch.hidden_size
    out_input = arch.query_size if kind in ("eager", "math") or is_int8 else 0
    return float(e * (norm_outputs + out_input + arch.intermediate_size))


def _activation_bytes(arch: Architecture) -> int:
    """Return how many tensors of the inner size the MLP's activation saves.

    gelu_new is written out in Python: x, x / 2, tanh and 1 + tanh. A gate saves its product's
    two factors and the activation's input.
    """
    alone = 4 if arch.activation in ("gelu_new", "gelu_fast") else 1
    return alone + 2 if arch.is_gated else alone


def attention_bytes(run: Run, kind: Attention) -> tuple[float, float]:
    """Return what attention saves, and what its backward (or forward) takes on top.

    Fused operators save queries, keys, values, the output and a sum a head. The others save the
    probabilities in fp32 (eager a copy in the compute dtype too, which is free again in the
    softmax's backward), of all heads and keys; that backward holds two more of them, and a third
    as scratch memory on CUDA.
    """
    arch, e = run.arch, run.itemsize
    queries, keys, heads = arch.query_size, arch.key_size, arch.num_heads
    window = arch.sliding_window
    scores = 4.0 * heads * run.settings.max_length
    # A single key head is broadcast without a copy.
    repeated = queries if arch.num_key_value_heads > 1 else keys
    gradients = e * (queries + 2.0 * repeated)
    if kind == "fused":
        return e * (2 * queries + 2 * keys) + 4.0 * heads, gradients + 4.0 * queries
    if kind == "efficient":
        has_mask = window is not None and window < run.settings.max_length
        mask = e * run.settings.max_length if has_mask else 0
        return e * (2 * queries + 2 * repeated) + 4.0 * heads + mask, gradients + 4.0 * queries
    softmax = scores * (3 if run.gpu else 2)
    if kind == "eager":
        copies = e * heads * run.settings.max_length if run.copies_inputs else 0
        return e * (queries + 2 * repeated) + scores + copies, softmax - copies
    if run.gpu is None:
        # Its forward takes more: the scores, the softmax, and which scores are hidden, a byte each.
        softmax = scores * 2.25
    return 4.0 * (queries + 2 * repeated) + scores, softmax
