"""Uploads through the real client, to a hub on loopback."""

import json

import pytest
from tiny import start_lorafit

from export.hub_server import running_hub


def push(hub, *arguments, **environment):
    process = start_lorafit(
        *arguments,
        **{"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
           "HF_TOKEN": hub.token} | environment,
    )  # fmt: skip
    out, err = process.communicate(timeout=600)
    assert "Traceback" not in out + err
    return process.returncode, out, err


def test_an_export_arrives_whole_with_the_token_of_the_environment(own_run):
    with running_hub("a-token") as hub:
        code, out, err = push(
            *(hub, "export", own_run, "--no-merge", "--device", "cpu"),
            *("--push", "me/my-adapter", "--public", "--json"),
        )
    assert code == 0, err
    assert json.loads(out)["url"] == f"{hub.url}/me/my-adapter"
    assert hub.created[0]["visibility"] == "public"
    exported = own_run / "export"
    assert hub.files == {
        f"me/my-adapter/{path.name}": path.read_bytes() for path in exported.iterdir()
    }
    assert hub.tokens == {"Bearer a-token"}
    assert "a-token" not in out + err


@pytest.mark.parametrize("kind", ["wrong token", "no hub"])
def test_a_push_that_fails_says_why_and_leaves_the_export(own_run, kind):
    with running_hub("a-token") as hub:
        changes = (
            {"HF_TOKEN": "other"}
            if kind == "wrong token"
            else {"HF_ENDPOINT": "http://127.0.0.1:9"}
        )
        code, _, err = push(
            hub, "export", own_run, "--no-merge", "--device", "cpu", "--push", "me/a", **changes
        )
    assert code == 3
    assert "the hub did not take me/a: " in err
    assert f"hf upload me/a {own_run / 'export'}" in err
    assert (own_run / "export" / "adapter_model.safetensors").is_file()


def test_without_a_login_nothing_is_exported(own_run, tmp_path):
    with running_hub("a-token") as hub:
        code, _, err = push(
            hub, "export", own_run, "--push", "me/a", HF_TOKEN="", HF_HOME=str(tmp_path / "home")
        )
    assert code == 2
    assert "hint: type: hf auth login, or set HF_TOKEN" in err
    assert not (own_run / "merged").exists()
