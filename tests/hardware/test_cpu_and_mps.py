import pytest

from lorafit.hardware.cpu import (
    cpu_device_info,
    parse_cpu_name,
    parse_native_bfloat16,
    read_cgroup_limits,
    read_cpu,
)
from lorafit.hardware.mps import AppleReading, mps_device_info, parse_apple, parse_sysctl
from lorafit.units import GIB, KIB, MIB

from . import recorded


@pytest.mark.parametrize(
    ("text", "name", "has_bfloat16"),
    [
        (recorded.CPUINFO_EPYC, "AMD EPYC 9R14", True),
        (recorded.CPUINFO_CORE_I7, "Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", False),
        (recorded.CPUINFO_GRAVITON, None, True),
        ("", None, False),
    ],
)
def test_reads_name_and_bfloat16_from_cpuinfo(text, name, has_bfloat16):
    assert parse_cpu_name(text) == name
    assert parse_native_bfloat16(text) is has_bfloat16


def machine(root, files):
    base = {"proc/cpuinfo": recorded.CPUINFO_EPYC, "proc/meminfo": recorded.MEMINFO}
    for path, text in (base | files).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


V2 = {
    "proc/self/cgroup": "0::/kubepods/pod1/box\n",
    "sys/fs/cgroup/kubepods/pod1/box/cpu.max": "max 100000\n",
    "sys/fs/cgroup/kubepods/pod1/box/memory.max": "max\n",
    "sys/fs/cgroup/kubepods/pod1/cpu.max": "50000 100000\n",
    "sys/fs/cgroup/kubepods/pod1/memory.max": str(4 * GIB) + "\n",
    "sys/fs/cgroup/kubepods/pod1/memory.current": str(3 * GIB) + "\n",
    "sys/fs/cgroup/kubepods/pod1/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB) + "\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": str(512 * MIB) + "\n",
    "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}


def test_takes_the_tightest_cgroup_2_limit_of_all_parents(tmp_path):
    limits = read_cgroup_limits(machine(tmp_path, V2))
    assert (limits.num_cores, limits.memory_bytes) == (0.5, 4 * GIB)
    assert limits.used_bytes == GIB  # file cache does not count


def test_reads_cgroup_1_limits_of_a_container(tmp_path):
    limits = read_cgroup_limits(machine(tmp_path, V1))
    assert (limits.num_cores, limits.memory_bytes, limits.used_bytes) == (1.5, 2 * GIB, 512 * MIB)


def test_no_limit_in_either_version_is_no_limit(tmp_path):
    files = V1 | {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    }
    limits = read_cgroup_limits(machine(tmp_path, files))
    assert (limits.num_cores, limits.memory_bytes) == (None, None)


def test_cpu_device_obeys_the_limits_and_says_so(tmp_path):
    device = cpu_device_info(read_cpu(machine(tmp_path, V2)))
    assert device.usable_bytes == 4 * GIB
    assert device.free_bytes == 3 * GIB
    assert device.num_cpu_cores == 1
    assert "limits memory to 4.00 GiB" in device.reason


def test_cpu_device_without_limits_has_the_memory_of_meminfo(tmp_path):
    device = cpu_device_info(read_cpu(machine(tmp_path, {})))
    assert (device.usable_bytes, device.free_bytes) == (16_384_000 * KIB, 12_288_000 * KIB)
    assert device.supports_bfloat16


def test_reads_a_mac_from_sysctl():
    assert parse_apple(parse_sysctl(recorded.SYSCTL_M3)) == ("Apple M3 Pro", 18 * GIB, (14, 5))
    assert parse_apple(parse_sysctl(recorded.SYSCTL_INTEL)) is None
    assert parse_apple({}) is None


def test_mac_before_macos_14_has_no_bfloat16():
    old = mps_device_info(AppleReading("Apple M1", 16 * GIB, (13, 6), 12 * GIB, None))
    assert not old.supports_bfloat16
    assert "macOS 13" in old.warnings[0]
    assert old.usable_bytes == 16 * GIB * 2 // 3


def test_mac_with_little_free_memory_warns():
    device = mps_device_info(AppleReading("Apple M3", 16 * GIB, (15, 0), 4 * GIB, 11 * GIB))
    assert device.free_bytes == 4 * GIB
    assert "4.00 GiB" in device.warnings[0]
