"""The probe, in a process of its own that trains something small."""

import sys
from pathlib import Path

import pytest
from peers.measure import ON_ONE_CORE, RunError, probe_record, run_probed

TRAINING = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, device="cpu"):
        super().__init__()
        self.embedding = nn.Embedding(16, 4, device=device)
        self.head = nn.Linear(4, 16, device=device)

    def forward(self, input_ids):
        return self.head(self.embedding(input_ids)).sum()

def step(model, optimizer, ids, device="cpu"):
    model(input_ids=torch.tensor(ids, device=device)).backward()
    optimizer.step()
    optimizer.zero_grad()

pretended = Model("meta")
step(pretended, torch.optim.SGD(pretended.parameters()), [[5] * 9], "meta")
model = Model()
optimizer = torch.optim.AdamW(model.parameters())
model.eval()
with torch.no_grad():
    model(input_ids=torch.tensor([[3, 3, 3, 3, 3]]))
model.train()
step(model, optimizer, [[3, 4, 0], [5, 6, 7]])
step(model, optimizer, [[3, 0, 0]])
"""


def test_counts_real_steps_and_tokens_without_padding_validation_or_pretended_steps(
    tmp_path: Path,
) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    folder = tmp_path / "run"
    profiled = {**ON_ONE_CORE, "PROBE_PROFILE_AFTER": "1"}
    run_probed([sys.executable, str(script)], folder, folder / "caches", profiled)
    record = probe_record(folder)
    assert [step["tokens"] for step in record["steps"]] == [5, 6]
    assert [step["positions"] for step in record["steps"]] == [6, 9]
    assert record["first_forward"]["tokens"] == 0
    assert record["threads"] == 1
    clocks = [record["first_forward"], *record["steps"]]
    for figure in ("cpu_seconds", "wall_seconds", "peak_bytes"):
        values = [clock[figure] for clock in clocks]
        assert values == sorted(values)
    assert 0 < record["first_forward"]["wall_seconds"] < 300
    assert "aten::addmm" in [kernel["name"] for kernel in record["profile"]]


def test_a_run_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('hello'); sys.exit('error: no rows')"]
    with pytest.raises(RunError, match="exit status 1: error: no rows"):
        run_probed(command, tmp_path / "run", tmp_path / "caches", {})


def test_a_run_without_training_has_no_record(tmp_path: Path) -> None:
    run_probed([sys.executable, "-c", "print(1)"], tmp_path / "run", tmp_path / "caches", {})
    with pytest.raises(RunError, match="0 processes took optimizer steps"):
        probe_record(tmp_path / "run")


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no-such-tool cannot be started"):
        run_probed(["no-such-tool"], tmp_path / "run", tmp_path / "caches", {})
