"""What a process keeps beside its tensors, by device."""

from lorafit.config.schema import Settings
from lorafit.hardware.detect import detect_device, planned_device
from lorafit.memory.device import kept_bytes
from lorafit.units import MIB


def kept(changing_mib, device=None, **settings):
    values = {"per_device_train_batch_size": 4, "max_length": 512, **settings}
    return kept_bytes(Settings(**values), device or detect_device("cpu"), changing_mib * MIB)


def test_a_cpu_keeps_more_the_larger_and_the_more_varied_its_micro_batches():
    assert kept(50) < kept(100)
    assert kept(200) == kept(2000), "large blocks go back to the system"
    assert kept(50, max_length=64) < kept(50, max_length=128) < kept(50)
    # More rows than a CPU takes at once bring no further sizes.
    assert kept(50, per_device_train_batch_size=8) == kept(50)


def test_stock_layers_and_gpus_are_not_counted_so():
    assert kept(100, kernels="stock") == 0
    assert kept(100, planned_device("a100-40gb")) == 0
