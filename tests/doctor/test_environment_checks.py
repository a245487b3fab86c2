import socket

import pytest


def test_variables_that_change_runs_unseen_are_named(run_check):
    outcome = run_check("env.dangerous", environ={"CUDA_LAUNCH_BLOCKING": "1"})
    assert outcome.status == "warn"
    assert outcome.commands == ("unset CUDA_LAUNCH_BLOCKING",)
    assert run_check("env.dangerous", environ={"CUDA_LAUNCH_BLOCKING": "0"}).status == "ok"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("max_split_size_mb:128,expandable_segments:True", "max_split_size_mb"),
        ("backend:cudaMallocAsync", "backend"),
        ("garbage_collection_threshold:0.8, max_split_size_mb:64", "max_split_size_mb"),
        ("backend:native", None),
        ("expandable_segments:True", None),
        ("", None),
        ("nonsense", None),
    ],
)
def test_an_allocator_that_is_not_the_estimated_one_is_named(run_check, value, named):
    outcome = run_check("env.dangerous", environ={"PYTORCH_CUDA_ALLOC_CONF": value})
    assert outcome.status == ("warn" if named else "ok")
    if named:
        assert named in outcome.detail
        assert outcome.commands == ("unset PYTORCH_CUDA_ALLOC_CONF",)


def test_cuda_libraries_that_hide_those_of_torch_are_named(run_check, tmp_path):
    hiding, harmless = tmp_path / "cuda" / "lib64", tmp_path / "other"
    for folder in (hiding, harmless):
        folder.mkdir(parents=True)
    (hiding / "libnccl.so.2").touch()
    (harmless / "libpng.so").touch()
    environ = {"LD_LIBRARY_PATH": f"{harmless}:{tmp_path / 'missing'}::{hiding}"}
    outcome = run_check("env.dangerous", environ=environ)
    assert outcome.status == "warn"
    assert str(hiding) in outcome.detail
    assert str(harmless) not in outcome.detail
    # A torch without CUDA loads none of them.
    assert run_check("env.dangerous", environ=environ, cuda=None).status == "ok"


def test_without_a_variable_of_several_processes_there_is_nothing_to_check(run_check):
    assert run_check("env.processes").status == "skip"
    assert run_check("env.processes", environ={"NCCL_DEBUG": "WARN"}).status == "ok"


@pytest.mark.parametrize(
    ("environ", "text", "unset"),
    [
        ({"NCCL_P2P_DISABLE": "1"}, "keeps GPUs from writing", "unset NCCL_P2P_DISABLE"),
        ({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}, "wait for one that has died",
         "unset TORCH_NCCL_ASYNC_ERROR_HANDLING"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2: a run that no launcher starts waits",
         "unset WORLD_SIZE RANK"),
        ({"NCCL_SOCKET_IFNAME": "nothere"}, "names nothere, and this machine has ",
         "unset NCCL_SOCKET_IFNAME"),
        ({"GLOO_SOCKET_IFNAME": "nothere0"}, "names nothere0", "unset GLOO_SOCKET_IFNAME"),
    ],
)  # fmt: skip
def test_variables_that_hold_processes_up_are_named(run_check, environ, text, unset):
    outcome = run_check("env.processes", environ=environ)
    assert (outcome.status, text in outcome.detail) == ("warn", True), outcome
    assert outcome.commands == (unset,)


def test_interfaces_are_found_by_the_rules_of_each_library(run_check):
    here = socket.if_nameindex()[0][1]
    for name, value, status in (
        ("NCCL_SOCKET_IFNAME", here[:1], "ok"),
        ("NCCL_SOCKET_IFNAME", f"={here}", "ok"),
        ("NCCL_SOCKET_IFNAME", f"={here}x", "warn"),
        ("NCCL_SOCKET_IFNAME", "^docker0", "ok"),
        ("NCCL_SOCKET_IFNAME", f"nothere,{here}", "ok"),
        ("GLOO_SOCKET_IFNAME", here, "ok"),
        ("GLOO_SOCKET_IFNAME", f"{here}x", "warn"),
    ):
        assert run_check("env.processes", environ={name: value}).status == status, (name, value)


@pytest.mark.parametrize(
    "environ",
    [{"NCCL_P2P_DISABLE": "0"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"TORCH_NCCL_TRACE": "1"}],
)
def test_what_holds_nothing_up_is_fine(run_check, environ):
    assert run_check("env.processes", environ=environ).status == "ok"
