"""How an attention behaves when the outputs of its projections are changed: what proves which rows are whose.

A site is one attention, or one feed-forward block, of a model. Its outputs are what its last projection receives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ailora.formatting import collapse_layer_index
from ailora.roles import Projection, Role
from tests.tiny_models import BATCH


def names(listed: str) -> set[str]:
    return set(listed.split())


#: A term of positions beside `q k'` decides too: ALiBi, relative biases. The weights are then not uniform.
BIASED = names(
    """
    bloom clap_audio_model cpmant donut-swin layoutlmv3 lilt longt5 maskformer-swin mpnet mpt mt5 prophetnet
    sam3_detr_decoder sam3_lite_text_detr_decoder swin swin2sr swinv2 switch_transformers t5 t5gemma2_decoder udop umt5
    """
)
#: The weights do not add up to one: a gate or a norm follows, a sink takes a share, a padded window does, heads are
#: subtracted from one another, or there is no softmax (YOSO).
SCALED = names(
    """
    afmoe beam bitnet diffllama flint gpt_oss granite_swa granitemoe_swa hrm_text hy_v4 laguna lfm3 longformer led
    mimo_v2_flash muse_glimmer_text muse_spark_text openai_privacy_filter qwen3_5_moe_text qwen3_5_text qwen3_next yoso
    """
)
#: A norm with a mean follows the attention, so that the values reach the output with weights of both signs.
NORMED = {"kosmos_2_text_model"}
#: Its first attention is of chunks, one after the other: a change of a position is not one of the whole sequence.
CHUNKED = {"canine"}
#: At the first layer of the decoder all values are equal, as they start from zero or from one code.
START_EQUAL = {"detr", "mimi", "table-transformer"}

Change = Callable[[Tensor], Tensor]
#: Entries that float32 leaves of zero, relative to the largest.
CLOSE = 1e-5


class _Seen(Exception):
    """The input of the observed module."""


@dataclass(frozen=True)
class Model:
    """A model, its inputs, and its projections."""

    module: nn.Module
    inputs: Mapping[str, Any]
    projections: tuple[Projection, ...]

    @contextmanager
    def changed(self, of: Projection, change: Change) -> Iterator[None]:
        """The rows of a projection's output (..., positions, rows) changed while the body runs."""
        rows = [row for start, stop in of.rows for row in range(start, stop)]

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            output = output.clone()
            arranged = _positions_last_but_one(output)
            arranged[..., rows] = change(arranged[..., rows]).to(output.dtype)
            return output

        handle = self.module.get_submodule(of.module).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def seen_by(self, projection: Projection) -> Tensor | None:
        """What a projection receives first, (..., positions, in); None when it is not called."""

        def stop(_: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            raise _Seen(arguments[0] if arguments else next(iter(keywords.values())))

        handle = self.module.get_submodule(projection.module).register_forward_pre_hook(stop, with_kwargs=True)
        torch.manual_seed(0)  # Some mask, or pick patches, at random.
        try:
            with torch.no_grad():
                self.module(**self.inputs)
        except _Seen as seen:
            return _positions_last_but_one(seen.args[0])
        finally:
            handle.remove()
        return None

    def positions_of(self, projection: Projection) -> int:
        """At how many positions a projection is computed."""
        seen = self.seen_by(projection)
        assert seen is not None
        return seen.shape[-2]


def _positions_last_but_one(x: Tensor) -> Tensor:
    """A view (..., positions, features): some families keep (positions, batch, features)."""
    first = x.ndim == 3 and x.shape[1] == BATCH != x.shape[0]
    return x.transpose(0, 1) if first else x


@dataclass(frozen=True)
class Site:
    """One attention of a model: its projections, and what other terms decide it."""

    model: Model
    query: Projection
    key: Projection
    value: Projection
    output: Projection

    @property
    def name(self) -> str:
        """The value's module, the layer indices collapsed."""
        return collapse_layer_index(self.value.module)

    def result(self, **changes: Change) -> Tensor | None:
        """The attention's output while the projections named by role are changed."""
        if not changes:
            return self.model.seen_by(self.output)
        role, change = changes.popitem()
        with self.model.changed(getattr(self, role), change):
            return self.result(**changes)


def sites(model: Model) -> tuple[Site, ...]:
    """The first attention of each kind that a model has."""
    found: dict[str, Site] = {}
    for value in model.projections:
        name = collapse_layer_index(value.module)
        if value.role is Role.VALUE and name not in found:
            parts = {role: _beside(model, value, role) for role in (Role.QUERY, Role.KEY, Role.OUTPUT)}
            if all(parts.values()):
                found[name] = Site(model, parts[Role.QUERY], parts[Role.KEY], value, parts[Role.OUTPUT])
    return tuple(found.values())


def _beside(model: Model, value: Projection, role: Role) -> Projection | None:
    """The projection of a role whose module's name has most in common with the value's."""
    mates = [p for p in model.projections if p.role is role and p.attention is value.attention]
    return max(mates, key=lambda mate: _shared(mate, value), default=None)


def without_biases(model: nn.Module) -> nn.Module:
    """The model without the biases that stand beside the query after its projection."""
    beside = re.compile(r"(^|\.)((pos_)?bias_[uv]|[qv]_bias|(q|k|query|key)_(layer)?norm\.bias)$")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if beside.search(name):
                parameter.zero_()
    for module in model.modules():
        if type(module).__name__ == "DisentangledSelfAttention":
            # Positions meet queries and keys in terms of their own.
            module.pos_att_type = []
    return model


# --- what every attention does -------------------------------------------------------------------------------------


def is_constant(output: Tensor) -> bool:
    """Whether all positions, and examples, have the same vector."""
    flat = output.reshape(-1, output.shape[-1])
    return bool((flat - flat[:1]).abs().max() <= CLOSE * max(1.0, float(flat.abs().max())))


def same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= CLOSE * max(1.0, float(b.abs().max())))


def only(position: int) -> Change:
    """One at a position, zero at the others."""

    def change(rows: Tensor) -> Tensor:
        rows = torch.zeros_like(rows)
        rows[..., position, :] = 1
        return rows

    return change


def moved(position: int) -> Change:
    """Something added at a position."""

    def change(rows: Tensor) -> Tensor:
        noise = torch.randn(rows.shape[-1], generator=torch.Generator().manual_seed(4))
        rows = rows.clone()
        rows[..., position, :] += 3 * noise * rows.std().clamp(min=1)
        return rows

    return change


def turned(rows: Tensor) -> Tensor:
    """Other keys."""
    return 5 - 2 * rows


def without_values(site: Site) -> str | None:
    """Zero values: the output is constant over positions, as it is not otherwise. What is wrong, or None."""
    output, without = site.result(), site.result(value=torch.zeros_like)
    if output is None or without is None:
        return "the output projection is not called"
    if is_constant(output):
        return "the output is constant as it is"
    return None if is_constant(without) else "without values the output varies over positions"


def without_queries(site: Site, *, biased: bool, scaled: bool) -> str | None:
    """Zero queries: attention is uniform over the mask, and the keys have no say.

    Args:
        site: The attention.
        biased: Another term than `q k'` decides too, by positions: then the weights need not be uniform.
        scaled: The weights need not add up to one: a gate follows, or a sink takes a share.
    """
    plain = site.result(query=torch.zeros_like)
    other = site.result(query=torch.zeros_like, key=turned)
    assert plain is not None
    assert other is not None
    if not same(plain, other):
        return "without queries the keys still have a say"
    positions = site.model.positions_of(site.value)
    tried = sorted({round(i * (positions - 1) / 11) for i in range(12)}) if positions > 12 else range(positions)
    found = [site.result(query=torch.zeros_like, value=only(j)) for j in tried]
    weights = torch.stack([weight for weight in found if weight is not None])
    largest = weights.amax(0)
    if weights.min() < -CLOSE or not (largest.flatten(0, -2).amax(0) > 0).all():
        return "the values do not reach the output with positive weights"
    if not biased and ((weights - largest).abs().minimum(weights.abs()) > CLOSE).any():
        return "without queries the attention is not uniform over the mask"
    total = weights.sum(0)
    if len(tried) == positions and not scaled and (total - 1).abs().max() > CLOSE:
        return "the weights of the values do not add up to one"
    return None


def positions_matter(site: Site) -> str | None:
    """A query is of its position only; a key and a value are of the others too."""
    output = site.result()
    at = min(2, site.model.positions_of(site.query) - 1)
    by_query = site.result(query=moved(at))
    assert output is not None
    assert by_query is not None
    if output.shape[-2] == site.model.positions_of(site.query):
        change = (by_query - output).abs().amax(-1)
        others = [p for p in range(output.shape[-2]) if p != at]
        size = max(1.0, float(output.abs().max()))
        if not change[..., at].max() > 1e-4 * size:
            return "a query does not act at its position"
        if others and change[..., others].max() > CLOSE * size:
            return "a query acts at other positions"
    for role in ("key", "value"):
        result = site.result(**{role: moved(0)})
        assert result is not None
        change = (result - output).abs().amax(-1).reshape(-1, output.shape[-2]).amax(0)
        if (change > 1e-4).sum() <= (output.shape[-2] > 1):
            return f"a {role} does not act at other positions"
    return None


def problems(site: Site) -> list[str]:
    """What an attention does that its roles do not say."""
    family = site.value.rule
    found = [without_values(site)]
    if family not in NORMED:
        found.append(without_queries(site, biased=family in BIASED, scaled=family in SCALED))
    if family not in CHUNKED:
        found.append(positions_matter(site))
    return [problem for problem in found if problem]


# --- what every feed-forward block does ------------------------------------------------------------------------------


def feed_forward(model: Model, family: str) -> dict[str, str | None]:
    """For the first feed-forward block of each kind in a family what is wrong, or None: without its first part, or its
    gate, what the last one receives is constant, and it is linear in the part that the gate is not."""
    found: dict[str, str | None] = {}
    for down in model.projections:
        name = collapse_layer_index(down.module)
        if down.role is Role.DOWN and down.rule == family and name not in found:
            up, gate = (_beside(model, down, role) for role in (Role.UP, Role.GATE))
            if up and gate and _shared(gate, down) < _shared(up, down):
                gate = None
            found[name] = "no first part" if up is None else _feed_forward(model, up, gate, down)
    return found


def _shared(a: Projection, b: Projection) -> int:
    """How many parts of their modules' names are the same, from the left."""
    pairs = list(zip(a.module.split("."), b.module.split("."), strict=False))
    return next((n for n, (x, y) in enumerate(pairs) if x != y), len(pairs))


def _feed_forward(model: Model, up: Projection, gate: Projection | None, down: Projection) -> str | None:
    received = model.seen_by(down)
    if received is None:
        return "the last part is not called"
    for part in (up, gate) if gate else (up,):
        with model.changed(part, torch.zeros_like):
            without = model.seen_by(down)
        if without is None or not is_constant(without):
            return f"without {part.role} what follows varies"
    if gate:
        with model.changed(up, lambda rows: 2 * rows):
            twice = model.seen_by(down)
        if twice is None or not same(twice, 2 * received):
            return "not linear in the part beside the gate"
        with model.changed(gate, lambda rows: 2 * rows):
            twice = model.seen_by(down)
        if twice is None or same(twice, 2 * received):
            return "linear in the gate"
    return None
