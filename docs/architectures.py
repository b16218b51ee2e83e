"""Write `architectures.md`: the model types of the installed transformers, and their rows in the catalog.

python -m docs.architectures
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import transformers
from tests.attention import BIASED, SCALED
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ailora.roles import naming_rules
from ailora.roles.catalog import FAMILIES, LEFT_OUT
from ailora.roles.naming_rules import Rule

FILE = Path(__file__).with_suffix(".md")

_TEXT = """# Architectures

`python -m docs.architectures` generates this page for transformers {version}; a test keeps it current. `ailora roles
MODEL` lists the projections of a model, and the modules without a role. [Roles of an unsupported
model](howto/add_architecture.md) explains how to add a family, and how to name roles by hand.

Of {total} model types, **{known} have a row in the catalog**, tested by behaviour (below). {parts} are composed of
such models, {left} are left out with a reason, and {unknown} are unknown: `ailora` asks for their roles and never
guesses. {inner} further row is for remote code (ChatGLM).

## Tests of a row

`tests/contracts/test_families.py` builds a small model of each family from its configuration class, and checks:

- If the outputs of the VALUE rows are set to zero, the output of the attention is constant over positions; otherwise
  it is not.
- If the outputs of the QUERY rows are set to zero, every position attends uniformly to the positions that its mask
  allows, and the keys have no effect. With position terms (ALiBi, relative biases: {biased} families), the keys have
  no effect and the weights sum to one. With a gate, a norm or a sink after the attention ({scaled} families), the sum
  may differ from one.
- A query affects only its position; a key and a value affect other positions too.
- Without its gate or its first part, the last part of a feed-forward block receives a constant. The block is linear
  in the part beside the gate, and not linear in the gate.
- The roles partition the rows of every weight.
- The adapted model equals the base model bit for bit at step 0, and stock PEFT loads the saved adapter.

Some of these checks do not apply to some families; `tests/attention.py` lists them, with the reason.

## Special cases

- **Self and cross attention** (`attention` in `ailora roles`) and the **towers of a multimodal model** (`decided by`)
  are distinguished: `modules="language_model"` adapts a single tower.
- **Latent attention** (DeepSeek-V2, arXiv 2405.04434). The query is `q_proj`, or `q_b_proj` if queries are
  compressed: `q_b_proj` maps the latent to the heads, each of which has its rows, whereas all heads share the narrow
  `q_a_proj`. `kv_b_proj` computes keys and values from a shared latent. For each head it has the rows of a key
  without position and the rows of a value. The VALUE rows are the factor of `softmax(q k')` in the attention, so they
  are W^V (per head, applied to the latent). `kv_a_proj_with_mqa` computes the latent and the positional key for all
  heads; it is neither a key nor a value, and gets no role.
- **A gate inside the query's weight** (Qwen3-Next): its rows have the role `gate`.
- **Experts**, including shared experts, get no role. `role_names` can name those that are linear modules. LoRA layers
  cannot adapt experts in a three-dimensional parameter. In models with such experts, PEFT maps the names `gate_proj`,
  `up_proj` and `down_proj` to the experts, so `ailora` refuses the roles gate, up and down for their dense layers.
- **State-space, recurrent and linear-attention layers** have no query and no value. In hybrid models only the layers
  with full attention are adapted.
- **`nn.MultiheadAttention`** is not adapted: PEFT's LoRA layer for it rewrites the base weight in every forward pass
  and always adapts `out_proj` too. `nn.TransformerEncoderLayer` is not adapted either: in eval mode it reads the
  weights of its linear layers directly, without an adapter. The modules around them are adapted as usual.

## Fused weights

| family | weight | roles, in the order of their rows | split |
|---|---|---|---|
{fused}

## Rows by convention

| convention | model types |
|---|---|
{naming_rules}

## Composed model types

{composite}

## Left out

| reason | model types |
|---|---|
{reasons}

## Unknown

{unknowns}
"""


def parts_of(config: PreTrainedConfig) -> list[str]:
    """Return the model types of the configurations inside a configuration."""
    inside = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [name for part in inside for name in (part.model_type, *parts_of(part))]


def status(model_type: str) -> str:
    """Return `row`, `parts`, `left out` or `unknown`."""
    if model_type in FAMILIES:
        return "row"
    if model_type in LEFT_OUT:
        return "left out"
    try:
        parts = parts_of(CONFIG_MAPPING[model_type]())
    except Exception:  # Some configurations need packages, some need arguments.
        parts = []
    return "parts" if any(part in FAMILIES for part in parts) else "unknown"


@cache
def walk() -> dict[str, list[str]]:
    """Return the model types of transformers, by status."""
    types: dict[str, list[str]] = {"row": [], "parts": [], "left out": [], "unknown": []}
    for model_type in sorted(CONFIG_MAPPING.keys()):
        types[status(model_type)].append(model_type)
    return types


def render() -> str:
    """Return the page."""
    types = walk()
    return _TEXT.format(
        version=transformers.__version__,
        total=sum(map(len, types.values())),
        known=len(types["row"]),
        parts=len(types["parts"]),
        left=len(types["left out"]),
        unknown=len(types["unknown"]),
        inner=len(FAMILIES.keys() - set(types["row"])),
        biased=len(BIASED),
        scaled=len(SCALED),
        fused=_fused(),
        naming_rules=_naming_rules(),
        composite=", ".join(types["parts"]),
        reasons=_reasons(),
        unknowns=", ".join(types["unknown"]),
    )


def _names() -> dict[int, str]:
    return {
        id(rules): name for name, rules in vars(naming_rules).items() if name.isupper() and not name.startswith("_")
    }


def _naming_rules() -> str:
    names = _names()
    rows: dict[str, list[str]] = {}
    for family, rules in FAMILIES.items():
        rows.setdefault(names[id(rules)], []).append(family)
    ordered = sorted(rows.items(), key=lambda row: (-len(row[1]), row[0]))
    return "\n".join(f"| {name} ({len(families)}) | {', '.join(sorted(families))} |" for name, families in ordered)


def _fused() -> str:
    families: dict[tuple[str, str, str], list[str]] = {}
    for family, rules in FAMILIES.items():
        for rule in rules:
            if len(rule.roles) > 1 and rule.attention is not None:
                key = (_weight(rule), ", ".join(rule.roles), rule.split.__name__.replace("_", " "))
                families.setdefault(key, []).append(family)
    return "\n".join(f"| {', '.join(sorted(names))} | `{w}` | {r} | {s} |" for (w, r, s), names in families.items())


def _weight(rule: Rule) -> str:
    return rule.pattern.replace("\\", "").rpartition(").")[2].split(".")[-1]


def _reasons() -> str:
    rows: dict[str, list[str]] = {}
    for family, reason in LEFT_OUT.items():
        rows.setdefault(reason, []).append(family)
    return "\n".join(f"| {reason} | {', '.join(sorted(families))} |" for reason, families in rows.items())


if __name__ == "__main__":
    FILE.write_text(render())
