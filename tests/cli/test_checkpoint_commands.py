"""init, export, merge, verify and inspect as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import ailora
from tests.families import FAMILIES


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    FAMILIES["llama"].model().save_pretrained(folder)
    return folder


@pytest.mark.ci
def test_from_init_to_merge(base: Path, tmp_path: Path) -> None:
    dry = json.loads(
        ailora("init", str(base), "--rank", "4", "--out", str(tmp_path / "a"), "--dry-run", "--json").stdout
    )
    assert dry["modules"] == 4
    assert not (tmp_path / "a").exists()
    made = ailora("init", str(base), "--rank", "4", "--out", str(tmp_path / "a"), "--workers", "2")
    assert made.returncode == 0, made.stderr
    assert "bytes read" in made.stdout
    verdict = ailora("verify", str(tmp_path / "a"), "--base", str(base))
    assert verdict.returncode == 0
    assert "the update is exactly zero" in verdict.stdout
    shown = ailora("inspect", str(tmp_path / "a")).stdout
    for word in ("ailora", "anchored", "query", "principal", "|s B0 A0|", "|dA|/|A0|", "stable rank"):
        assert word in shown
    exported = ailora("export", str(tmp_path / "a"), "--out", str(tmp_path / "e"), "--rank", "2", "--dtype", "bf16")
    assert "Set max_lora_rank of a server to at least 2 (vLLM: --max-lora-rank 8)." in exported.stdout
    merged = json.loads(ailora("merge", str(base), str(tmp_path / "e"), "--out", str(tmp_path / "m"), "--json").stdout)
    assert merged["merged"] == 4
    model = json.loads(ailora("inspect", str(tmp_path / "m"), "--json").stdout)
    assert model["class"] == "LlamaForCausalLM"


def test_a_failed_check_is_exit_code_1_and_a_mistake_2(base: Path, tmp_path: Path) -> None:
    ailora("init", str(base), "--rank", "4", "--out", str(tmp_path / "a"))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1}))
    failed = ailora("verify", str(tmp_path / "a"), "--base", str(base), "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["passed"] is False
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    mistake = ailora("init", str(base), "--rank", "4", "--out", str(tmp_path / "mine"))
    assert mistake.returncode == 2
    assert "is not empty and holds no output of this command" in mistake.stderr
    assert "is an input inside the output folder" in ailora("init", str(base), "--rank", "4", "--out", str(base)).stderr


@pytest.mark.slow
def test_ranks_of_a_launcher_share_the_work(base: Path, tmp_path: Path) -> None:
    """Two processes of torchrun, one folder, the same file as one process makes."""
    import subprocess
    import sys

    script = tmp_path / "run.py"
    script.write_text("from ailora.cli import main\nmain()\n")
    out, alone = tmp_path / "shared", tmp_path / "alone"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    arguments = ["init", str(base), "--rank", "4", "--no-cache", "--out"]
    for _ in range(2):  # the second time nothing is left to do
        made = subprocess.run(
            [*command, str(script), *arguments, str(out)], capture_output=True, text=True, timeout=300, check=False
        )
        assert made.returncode == 0, made.stderr
    ailora(*arguments, str(alone))
    assert (out / "adapter_model.safetensors").read_bytes() == (alone / "adapter_model.safetensors").read_bytes()


def test_paths_are_printed_in_a_single_line(capsys: pytest.CaptureFixture[str]) -> None:
    from ailora.cli.tables import print_line

    path = "/a folder" * 50
    print_line(f"written to {path}\x1b")
    assert capsys.readouterr().out == f"written to {path}\\x1b\n"


def test_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    """The role of a fused weight stands in brackets, which a terminal library takes for markup."""
    from ailora.cli.tables import print_report

    print_report("written to out[/a]", {"floored": {"h.0.attn.c_attn[query]": 2}, "folder": "[/x]"}, as_json=False)
    shown = capsys.readouterr().out
    for text in ("out[/a]", "h.0.attn.c_attn[query] 2", "[/x]"):
        assert text in shown
