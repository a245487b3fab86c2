import pytest

from lorafit.errors import ExitCode, UsageError
from lorafit.hardware.catalog import CATALOG, lookup, match_name, metal_budget_bytes
from lorafit.units import GIB, MIB


def test_every_entry_is_complete_and_below_its_label():
    for key, entry in CATALOG.items():
        assert entry.key == key == key.lower()
        assert 0.6 * entry.label_bytes < entry.usable_bytes < entry.label_bytes * 1.0, key
        assert entry.memory_bandwidth_bytes_per_second > 1e10, key
        assert entry.peak_matmul_flops > 1e11, key
        assert entry.num_multiprocessors > 0, key
        assert (entry.compute_capability is not None) == (entry.kind == "cuda"), key


def test_lists_every_device_that_the_documentation_names():
    names = "t4 rtx-2080-ti rtx-3090 rtx-4080 rtx-4090 rtx-5090 rtx-a4000 rtx-a6000 l4 l40s a10"
    names += " a10g a100-40gb a100-80gb h100 h200 b200 m1-8gb m1-16gb m2-24gb m3-18gb m3-36gb"
    assert set((names + " m4-16gb m4-128gb cpu").split()) <= CATALOG.keys()


def test_usable_bytes_agree_with_published_readings():
    assert CATALOG["t4"].usable_bytes == 14_912 * MIB
    assert CATALOG["a10g"].usable_bytes == pytest.approx(22.5 * GIB, rel=0.025)
    assert CATALOG["h200"].usable_bytes == pytest.approx(139.75 * GIB, rel=0.001)


@pytest.mark.parametrize(
    ("ram_gib", "budget_mib"),
    [(16, 10_922.67), (24, 16_384), (32, 21_845.33), (36, 27 * 1024), (64, 49_152), (96, 73_728)],
)
def test_metal_budget_agrees_with_posted_working_sets(ram_gib, budget_mib):
    assert metal_budget_bytes(ram_gib * GIB) == pytest.approx(budget_mib * MIB, rel=1e-6)


@pytest.mark.parametrize(("key", "expected"), [("t4", False), ("a10g", True), ("m3-18gb", True)])
def test_knows_which_devices_have_bfloat16(key, expected):
    assert CATALOG[key].supports_bfloat16 is expected


@pytest.mark.parametrize(
    ("name", "total_mib", "key"),
    [
        ("Tesla T4", 15_360, "t4"),
        ("NVIDIA A10", 23_028, "a10"),
        ("NVIDIA A10G", 23_028, "a10g"),
        ("NVIDIA A100-SXM4-80GB", 81_920, "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", 81_920, "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", 40_960, "a100-40gb"),
        ("A100-SXM4-40GB", 40_536, "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", 81_559, "h100"),
        ("NVIDIA H100 PCIe", 81_559, "h100"),
        ("NVIDIA H200", 143_771, "h200"),
        ("NVIDIA B200", 183_359, "b200"),
        ("NVIDIA L40S", 46_068, "l40s"),
        ("NVIDIA GeForce RTX 4090", 24_564, "rtx-4090"),
        ("NVIDIA RTX A6000", 49_140, "rtx-a6000"),
        ("NVIDIA RTX A4000", 16_376, "rtx-a4000"),
        ("Apple M3 Pro", 18 * 1024, "m3-18gb"),
        ("Apple M1", 16 * 1024, "m1-16gb"),
        ("Apple M2 Ultra", 192 * 1024, "m2-192gb"),
        ("NVIDIA GeForce RTX 3090 Ti", 24_564, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16_376, None),
        ("NVIDIA GeForce RTX 4080 SUPER", 16_376, None),
        ("NVIDIA L40", 46_068, None),
        ("NVIDIA H100 NVL", 95_830, None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 20_096, None),
        ("NVIDIA A10", 12_000, None),
        ("Apple M9", 16 * 1024, None),
    ],
)
def test_matches_the_names_that_drivers_report(name, total_mib, key):
    assert match_name(name, total_mib * MIB) == key


def test_lookup_forgives_case_and_blanks():
    assert lookup(" RTX 4090 ").key == "rtx-4090"
    assert lookup("rtx4090").key == "rtx-4090"
    assert lookup("NVIDIA GeForce RTX 4090").key == "rtx-4090"
    assert lookup("Tesla T4").key == "t4"
    assert lookup("a100 80GB").key == "a100-80gb"
    assert lookup("Apple M3 18GB").key == "m3-18gb"


@pytest.mark.parametrize(
    ("key", "sizes"), [("a100", "a100-40gb or a100-80gb"), ("M3", "m3-8gb or m3-16gb or m3-18gb")]
)
def test_a_device_of_several_sizes_asks_for_one_of_them(key, sizes):
    with pytest.raises(UsageError, match="more than one size of memory") as caught:
        lookup(key)
    assert str(caught.value.hint).startswith(f"name it: {sizes}")


def test_a_family_of_devices_is_no_device_of_several_sizes():
    with pytest.raises(UsageError, match="'rtx' is not a known device"):
        lookup("rtx")


def test_lookup_of_an_unknown_name_gives_the_nearest_and_the_list():
    with pytest.raises(UsageError, match=r"'a100-80g'.*did you mean a100-80gb") as caught:
        lookup("a100-80g")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "m3-18gb" in (caught.value.hint or "")


def test_lookup_escapes_what_it_echoes():
    with pytest.raises(UsageError, match=r"x1b\[31m"):
        lookup("\x1b[31mred")
