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

Packages are listed from the lowest layer to the highest. A file imports from its own package and from those above it
on this page, never from those below; `make check` holds it (import-linter).

## From a call to a file

`ailora.adapt(model, "ailora", rank=8)` in five steps:

1. **Roles.** `roles/detect.py` finds the projections of the model: which module is a query, which rows of a fused
   weight are its value.
2. **Plan.** `plan/make_plan.py` gives each projection its init, rank, alpha and scaling by the policy
   (`inits/policy.py`). The plan holds no tensor.
3. **Decomposition.** `lora/adapt.py` looks every planned weight up once (`weights/base_weight.py`), and
   `lora/initial_factors.py` asks its init (`inits/spectral.py`) for `A0`, `B0`: `spectral/truncated_svd.py` computes
   and certifies the singular triplets.
4. **Injection.** `lora/inject.py` has PEFT put its layers on the model and replaces their two factors
   (`lora/set_factors.py`). `lora/anchored_factor.py` holds the anchor as a buffer and trains the difference from it;
   `lora/anchor.py` has the algebra.
5. **File.** `save_pretrained` of PEFT, or `adapter_io/save_adapter.py`, writes `[A0; dA]` and `[dB, B]` as an ordinary
   LoRA of rank 2r, and `ailora.json` (`plan/adapter_metadata.py`) beside it.

`ailora init` does the same from a checkpoint that is never loaded (`checkpoints/initialize.py`), and
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
