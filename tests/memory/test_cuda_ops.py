"""The table of scratch memory, against sizes worked out by hand from the kernels' sources."""

import pytest
import torch

from lorafit.memory.cuda_ops import SCRATCH
from lorafit.memory.events import Category, Phase
from lorafit.memory.gpu import GpuTraits
from lorafit.memory.scratch import Call, Sizes
from lorafit.memory.tracer import StorageTracer
from lorafit.units import MIB

T4 = GpuTraits((7, 5), 40)
A100 = GpuTraits((8, 0), 108)
RTX_4090 = GpuTraits((8, 9), 128)
H100 = GpuTraits((9, 0), 132)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def scratch(name: str, *args: object, gpu: GpuTraits | None = A100, **kwargs: object) -> Sizes:
    row = SCRATCH[name]
    call = Call(args, dict(kwargs), gpu)
    before = row.before(call) if row.before else []
    return before + (row.after(call) if row.after else [])


def heads(rows: int, number: int, tokens: int, width: int) -> torch.Tensor:
    return meta(rows, tokens, number, width).transpose(1, 2)


def choose(gpu: GpuTraits, **options: object) -> str:
    values: dict[str, object] = {
        "head_dim": 128,
        "is_half": True,
        "is_bfloat16": True,
        "has_mask": False,
        "grouped": False,
        "efficient_only": False,
    }
    return gpu.attention_operator(**{**values, **options})  # type: ignore[arg-type]  # mixed values


@pytest.mark.parametrize(
    ("gpu", "options", "operator"),
    [
        (A100, {}, "flash"),
        (A100, {"grouped": True}, "flash"),
        (A100, {"has_mask": True}, "efficient"),
        (A100, {"has_mask": True, "grouped": True}, "math"),
        (A100, {"is_half": False, "is_bfloat16": False}, "efficient"),
        (A100, {"head_dim": 256}, "flash"),
        (RTX_4090, {"head_dim": 224}, "efficient"),
        (RTX_4090, {"head_dim": 256}, "flash"),
        (RTX_4090, {"head_dim": 256, "dropout": 0.1}, "efficient"),
        (H100, {}, "cudnn"),
        (H100, {"has_mask": True, "grouped": True}, "cudnn"),
        (H100, {"head_dim": 256}, "flash"),
        (H100, {"dropout": 0.1}, "flash"),
        (T4, {"is_bfloat16": False}, "efficient"),
        (T4, {"is_bfloat16": False, "grouped": True}, "math"),
        (T4, {}, "math"),
        (A100, {"has_mask": True, "head_dim": 100}, "math"),
        (H100, {"efficient_only": True}, "efficient"),
    ],
)
def test_attention_takes_the_operator_that_pytorch_selects(
    gpu: GpuTraits, options: dict[str, object], operator: str
) -> None:
    assert choose(gpu, **options) == operator


def test_flash_forward_splits_keys_only_where_the_grid_leaves_the_gpu_idle() -> None:
    name = "aten::_scaled_dot_product_flash_attention"
    many = heads(4, 32, 1024, 80)
    assert scratch(name, many, many, many, 0.0, True) == []
    # 4 heads of 256 tokens: 16 blocks for 216 half multiprocessors, and one block of 256 keys.
    few = heads(1, 4, 256, 64)
    assert scratch(name, few, few, few, 0.0, True) == []
    # 1 head of 2048 tokens: 32 blocks, 16 key blocks of 128: 6 splits fill 216 to 0.89.
    long = heads(1, 1, 2048, 128)
    sums, outputs = scratch(name, long, long, long, 0.0, True)
    assert sums == 6 * 2048 * 4
    assert outputs == sums * 128
    assert scratch(name, long, long, long, 0.1, True) == []


def test_flash_backward_pads_heads_and_expands_grouped_gradients() -> None:
    name = "aten::_scaled_dot_product_flash_attention_backward"
    query = heads(2, 32, 1000, 80)
    assert scratch(name, query, query, query, query, query) == [
        2 * 32 * 1024 * 4,
        2 * 1024 * 32 * 96 * 4,
    ]
    grouped = heads(2, 8, 1000, 80)
    sizes = scratch(name, query, query, grouped, grouped, query)
    assert sizes[2:] == [2 * 1000 * 32 * 80 * 2] * 2


def test_cudnn_backward_takes_one_workspace_of_fp32_sums() -> None:
    name = "aten::_scaled_dot_product_cudnn_attention_backward"
    query, grouped = heads(2, 32, 512, 128), heads(2, 8, 512, 128)
    alone = 2 * 32 * 512 * (128 + 1) * 4
    assert scratch(name, query, query, query, query, gpu=H100) == [alone]
    expanded = 2 * 32 * 512 * (128 + 128) * 2
    assert scratch(name, query, query, grouped, grouped, gpu=H100) == [alone + expanded]


def test_logsumexp_holds_a_copy_of_its_input_on_every_device() -> None:
    logits = meta(64, 5000, dtype=torch.float32)
    assert scratch("aten::logsumexp", logits, [-1], True, gpu=None) == [64 * 4, 64 * 5000 * 4]
    tracer = StorageTracer("meta")
    tracer.begin(Phase.FORWARD, Category.ACTIVATION)
    with tracer:
        logits.logsumexp(-1)
    assert 64 * 5000 * 4 in tracer.trace.sizes


def test_int8_product_sums_in_int32_and_converts_what_is_not_fp16() -> None:
    name = "bitsandbytes::int8_mixed_scaled_mm"
    quantized, weight = meta(64, 256, dtype=torch.int8), meta(512, 256, dtype=torch.int8)
    product = 64 * 512
    assert scratch(name, meta(64, 256), quantized, weight) == [product * 4, product * 2]
    half = meta(64, 256, dtype=torch.float16)
    assert scratch(name, half, quantized, weight) == [product * 4]
    rows = "bitsandbytes::int8_vectorwise_quant"
    assert scratch(rows, half, threshold=6.0) == [64 * 256 * 2, 64 * 256]
    assert scratch(rows, half) == []


def test_gradient_of_chosen_rows_is_added_in_place_as_without_a_mode() -> None:
    leaf = torch.empty(40, 16, device="meta", requires_grad=True)
    positions = torch.empty(30, dtype=torch.int64, device="meta")
    tracer = StorageTracer("meta")
    with tracer:
        total = leaf.index_select(0, positions).sum()
        tracer.begin(Phase.BACKWARD, Category.ACTIVATION)
        (gradient,) = torch.autograd.grad(total, leaf)
    same_size = [size for size in tracer.trace.sizes if size == gradient.untyped_storage().nbytes()]
    assert len(same_size) == 1


@pytest.mark.parametrize(("gpu", "size"), [(T4, 8_519_680), (A100, 8_519_680), (H100, 32 * MIB)])
def test_cublas_workspace_follows_the_compute_capability(gpu: GpuTraits, size: int) -> None:
    assert gpu.cublas_workspace_bytes == size
