"""Write `architecture.md`: what every package and file of the source holds, from its docstring.

`python -m docs.source_map` writes the page; a test holds it against the source.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "ailora"
FILE = ROOT / "docs" / "architecture.md"

#: From the lowest layer to the highest; files of the package itself come first.
PACKAGES = (
    *("spectral", "roles", "safetensors_io", "inits", "weights", "plan", "lora", "adapter_io", "optim", "checkpoints"),
    *("recipes", "studies", "tune", "analysis", "plots", "report", "cli"),
)

_TEXT = """# Architecture

This page lists the packages from the lowest layer to the highest. A file imports only from its own package and from
packages above it on this page; `make check` enforces this with import-linter.

## From a call to a file

`ailora.adapt(model, "ailora", rank=8)` has five steps:

1. **Roles.** `roles/detect.py` finds the projections of the model: the role of each module, and of the rows of fused
   weights.
2. **Plan.** `plan/make_plan.py` assigns each projection an init by the policy (`inits/policy.py`), a rank, an alpha and
   a scaling. The plan contains no tensor.
3. **Decomposition.** `lora/adapt.py` looks every planned weight up once (`weights/base_weight.py`).
   `lora/initial_factors.py` calls the init of each weight (`inits/spectral.py`) for `A0` and `B0`, and
   `spectral/truncated_svd.py` computes and certifies the singular triplets.
4. **Injection.** `lora/inject.py` calls PEFT, which adds its layers to the model, and replaces their factors
   (`lora/set_factors.py`). `lora/anchored_factor.py` stores the anchor as a buffer and trains the difference from it;
   `lora/anchor.py` contains the algebra.
5. **File.** `save_pretrained` of PEFT, or `adapter_io/save_adapter.py`, writes `[A0; dA]` and `[dB, B]` as an ordinary
   LoRA of rank 2r, with `ailora.json` (`plan/adapter_metadata.py`) beside it.

`ailora init` does the same for a checkpoint, without loading the model (`checkpoints/initialize.py`).
`adapter_io/resume.py` reads the anchor back from the file.

## Files

{files}
"""


def render() -> str:
    """Return the page."""
    blocks = [_table("ailora", SOURCE, recursive=False)]
    blocks += [_table(name, SOURCE / name, recursive=True) for name in PACKAGES]
    return _TEXT.format(files="\n\n".join(blocks))


def summary(file: Path) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].removesuffix(".").replace("|", "\\|")


def _table(title: str, folder: Path, *, recursive: bool) -> str:
    files = sorted(folder.rglob("*.py") if recursive else folder.glob("*.py"))
    rows = [f"| `{file.relative_to(folder)}` | {summary(file)} |" for file in files if _is_listed(file)]
    heading = f"### {title}\n\n{summary(folder / '__init__.py')}."
    return "\n".join([heading, "", "| file | holds |", "|---|---|", *rows])


def _is_listed(file: Path) -> bool:
    return file.name not in ("__init__.py", "__main__.py")


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
