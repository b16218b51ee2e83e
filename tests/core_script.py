"""Everything that `pip install ailora` promises without extras, as a script: `python core_script.py FOLDER`."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import transformers

import ailora
from ailora.cli import main

NEEDS = {
    ("train", "c.yaml"): "train",
    ("evaluate", "run"): "train",
    ("study", "run", "s.yaml"): "study",
    ("report", "run"): "report",
    ("analyze", "base", "--out", "out"): "report",
    ("demo",): "demo",
}


def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command as its process would: exit code, standard output, standard error."""
    sys.argv = ["ailora", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return code, out.getvalue(), err.getvalue()


def check_method(base: Path) -> None:
    """`adapt` and `save_adapter` on a model."""
    model = ailora.adapt(transformers.AutoModelForCausalLM.from_pretrained(base), rank=4)
    ailora.save_adapter(model, base.parent / "saved")


def check_commands(base: Path) -> None:
    """Every file command."""
    adapter, exported, merged = (str(base.parent / name) for name in ("adapter", "exported", "merged"))
    for arguments in (
        ("--version",),
        ("roles", str(base)),
        ("plan", str(base)),
        ("init", str(base), "--rank", "4", "--out", adapter),
        ("verify", adapter, "--base", str(base)),
        ("inspect", adapter),
        ("export", adapter, "--out", exported),
        ("merge", str(base), exported, "--out", merged),
        ("cache", "show"),
    ):
        code, out, err = run(*arguments)
        assert code == 0, (arguments, err)
        assert out, arguments


def check_extras() -> None:
    """A command whose packages are missing says which extra has them."""
    for arguments, extra in NEEDS.items():
        code, _, err = run(*arguments)
        assert code == 2, (arguments, err)
        assert f'pip install "ailora[{extra}]"' in err, (arguments, err)
        assert len(err.splitlines()) == 1, err


if __name__ == "__main__":
    base = Path(sys.argv[1]) / "base"
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(base)
    check_method(base)
    check_commands(base)
    check_extras()
    print(json.dumps({"file": ailora.__file__, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
