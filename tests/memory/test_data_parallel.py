"""What a process takes beyond what it would take alone."""

import pytest

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory.data_parallel import (
    BUCKET_BYTES,
    NCCL_BYTES,
    bucket_bytes,
    num_shards_of,
    with_exchange,
)
from lorafit.memory.estimate import estimate_memory
from lorafit.model.source import locate_model
from lorafit.training.planning.fit import model_config


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], 0),
        ([10], 40),
        ([BUCKET_BYTES // 8] * 6, BUCKET_BYTES),
        ([BUCKET_BYTES, 1], 4 * BUCKET_BYTES),
    ],
)
def test_the_buffer_is_the_largest_piece_and_no_parameter_is_split(sizes, expected):
    assert bucket_bytes(sizes) == expected


@pytest.mark.usefixtures("quiet_libraries")
@pytest.mark.parametrize(
    ("hardware", "trainable", "room", "reserved", "outside"),
    [
        ("cpu", 7_000, 28_000, 28_000, 0),
        ("a100-40gb", 1_000_000, 4_000_000, 4 * 1024**2, NCCL_BYTES),
        ("a100-40gb", 10**9, BUCKET_BYTES, 26 * 1024**2, NCCL_BYTES),
    ],
)
def test_the_parts_still_add_up_to_the_process(
    tiny_model, hardware, trainable, room, reserved, outside
):
    device = planned_device(hardware)
    source = locate_model(str(tiny_model()))
    alone = estimate_memory(
        Settings(max_length=64, gradient_checkpointing=False), model_config(source), device
    )
    shared = with_exchange(alone, trainable, device, num_processes=4)
    assert shared.peak.allocated_bytes - alone.peak.allocated_bytes == room
    assert shared.peak.reserved_bytes - alone.peak.reserved_bytes == reserved
    assert shared.peak.process_bytes - alone.peak.process_bytes == reserved + outside
    assert sum(shared.breakdown.values()) == shared.peak.process_bytes
    assert shared.processes == {
        "count": 4,
        "parallelism": "ddp",
        "weights_bytes": alone.breakdown["weights_bytes"],
        "gathered_bytes": 0,
        "exchange_bytes": room,
        "communicator_bytes": outside,
    }
    assert "to exchange gradients" in shared.reasons[-2]
    assert shared.reasons[-1].startswith("fits: ")


@pytest.mark.usefixtures("quiet_libraries")
@pytest.mark.parametrize("hardware", ["cpu", "a100-40gb"])
def test_shared_weights_take_their_share_and_what_is_gathered_at_a_time(tiny_model, hardware):
    device = planned_device(hardware)
    config = model_config(locate_model(str(tiny_model(num_hidden_layers=8))))
    settings = Settings(max_length=64, gradient_checkpointing=False)
    whole = estimate_memory(settings, config, device)
    own = estimate_memory(settings, config, device, num_shards=4)
    shared = with_exchange(own, 7_000, device, num_processes=4, parallelism="fsdp")
    assert num_shards_of(shared) == 4
    assert num_shards_of(whole) == 1
    weights = whole.breakdown["weights_bytes"]
    assert weights / 4 <= own.breakdown["weights_bytes"] < weights
    # The ends of the model, whole, and of the 8 layers at most three copies of one.
    assert 0 < own.breakdown["gathered_bytes"] < weights
    assert "gathered_bytes" not in whole.breakdown
    for name in ("adapter_bytes", "optimizer_bytes"):
        assert own.breakdown[name] == whole.breakdown[name]
    assert sum(shared.breakdown.values()) == shared.peak.process_bytes
    communicators = shared.processes["communicator_bytes"]
    assert communicators == (2 * NCCL_BYTES if device.kind == "cuda" else 0)
