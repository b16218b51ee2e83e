"""`ailora verify`: check that an adapter was made for a base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.adapter_digests import find_edited_files
from ailora.adapter_io.completeness import validate_complete
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME
from ailora.adapter_io.projection_factors import ProjectionFactors
from ailora.checkpoints.modules_to_save import find_saved_tensors
from ailora.checkpoints.stored_weight import StoredWeight, open_adapted_base
from ailora.errors import InputError, ModelError
from ailora.inits.spectral import Spectral, min_singular_value
from ailora.plan.adapter_metadata import AdapterMetadata
from ailora.plan.adapter_plan import Form, Plan
from ailora.safetensors_io import Checkpoint, read_header, read_tensor
from ailora.weights.base_weight import matches_fingerprint, select_rows

#: Largest relative difference between a stored anchor and a new decomposition that passes. The anchors of equal weights
#: computed on two machines differ by about 1e-5, and the anchors of different weights or bands by about 1.
_ANCHOR_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """Result of a single check.

    Attributes:
        name: Name of the check.
        passed: Whether the check passed. None if the check does not apply or is inconclusive.
        detail: Figures of the check, or the first module that fails.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Verdict:
    """Results of all checks on an adapter.

    Attributes:
        adapter: Folder of the adapter.
        base: Name of the base model.
        checks: Results in the order of the checks.
    """

    adapter: str
    base: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed, and the check of the base weights or of the anchor passed."""
        results = {check.name: check.passed for check in self.checks}
        # If the base weights cannot be compared, a matching anchor identifies them too.
        is_identified = True in (results["base weights"], results.get("anchor"))
        return is_identified and False not in results.values()

    def to_dict(self) -> dict[str, object]:
        """Return the verdict as plain data."""
        return {**asdict(self), "passed": self.passed}


def verify(adapter: Path | str, base: str) -> Verdict:
    """Check files, ranks, base weights and anchor of an adapter against a base model, and whether its update is zero.

    Of the base, only the adapted weights are read, except that files with a digest are read completely to check it.

    Args:
        adapter: Folder of an adapter, or of a run.
        base: Base model: a folder, a hub id in the cache, or `builtin:minilm`.

    Returns:
        The verdict, with the results of all checks.

    Raises:
        InputError: The adapter is damaged or has no metadata, or the base is not available locally.
        ModelError: A weight of the base is quantized or not finite. A base that lacks an adapted weight, or has it in
            another shape, gets a negative verdict instead.
    """
    saved_adapter = AdapterCheckpoint.open(adapter)
    if saved_adapter.metadata is None or saved_adapter.plan is None:
        raise InputError(
            f"found no ailora.json for the adapter in {saved_adapter.folder} or its parent folders: without this file, "
            "the adapter's plan is unknown"
        )
    finite_check = _check_finite(saved_adapter)
    checks = [
        finite_check,
        _check_digests(saved_adapter),
        _check_scalings(saved_adapter, saved_adapter.plan),
    ]
    try:
        model, checkpoint, weights = open_adapted_base(base, saved_adapter)
    except ModelError as error:
        checks.append(Check("base weights", False, f"a different model: {error}"))
        return Verdict(str(saved_adapter.folder), base, tuple(checks))
    checks += [_check_targets(saved_adapter, model), _check_saved_modules(saved_adapter, model, checkpoint)]
    checks.append(_check_base_weights(weights, saved_adapter, saved_adapter.plan, saved_adapter.metadata))
    # Anchors can be read only if all entries are finite.
    if finite_check.passed:
        checks += _check_anchors(weights, saved_adapter, saved_adapter.plan)
    return Verdict(str(saved_adapter.folder), base, tuple(checks))


def _check_finite(adapter: AdapterCheckpoint) -> Check:
    try:
        adapter.validate_finite()
    except InputError as error:
        return Check("finite numbers", False, str(error))
    return Check("finite numbers", True, f"{len(adapter.tensors)} tensors")


def _check_digests(adapter: AdapterCheckpoint) -> Check:
    """Compare configuration and metadata with their digests. Changed weights are refused on opening."""
    edited = find_edited_files(adapter.folder, read_header(adapter.folder / WEIGHTS_NAME))
    if edited is None:
        return Check("digests", None, "the file has none: saved by PEFT, or by an earlier version")
    if edited:
        return Check("digests", None, f"the tensors are unchanged, but these files were edited: {', '.join(edited)}")
    return Check("digests", True, "all files are unchanged")


def _check_scalings(adapter: AdapterCheckpoint, plan: Plan) -> Check:
    """Compare the scalings with the plan, and list the ranks, which were compared when the adapter was opened."""
    if adapter.metadata and adapter.metadata.exported:
        return Check("ranks and scalings", None, f"an export of rank {adapter.metadata.exported.rank}")
    if mismatch := adapter.find_scaling_mismatch(plan):
        module, scaling, planned_scaling = mismatch
        detail = f"{module} is scaled by {scaling:g} in {CONFIG_NAME}, but by {planned_scaling:g} in the plan"
        return Check("ranks and scalings", False, detail)
    ranks = sorted({weights.rank for weights in adapter.modules.values()})
    return Check("ranks and scalings", True, f"{len(adapter.modules)} modules, rank {', '.join(map(str, ranks))}")


def _check_targets(adapter: AdapterCheckpoint, model: PreTrainedModel) -> Check:
    try:
        validate_complete(adapter, model)
    except InputError as error:
        return Check("adapted modules", False, str(error))
    return Check("adapted modules", True, f"{len(adapter.modules)} modules, as in {CONFIG_NAME}")


def _check_saved_modules(adapter: AdapterCheckpoint, model: PreTrainedModel, checkpoint: Checkpoint) -> Check:
    """Compare the shapes of fully fine-tuned modules with those in the model."""
    name = "saved modules"
    if not adapter.saved:
        return Check(name, None, "the adapter has none")
    try:
        saved = find_saved_tensors(adapter, model, checkpoint)
    except ModelError as error:
        return Check(name, False, str(error))
    if saved.vocab_size is not None:
        return Check(
            name,
            False,
            f"the vocabulary was resized before training: call model.resize_token_embeddings({saved.vocab_size}) "
            "before loading the adapter",
        )
    labels = "" if saved.label_count is None else f"; load the base with num_labels={saved.label_count}"
    return Check(name, True, f"{len(adapter.saved)} tensors fit{labels}")


def _check_base_weights(
    weights: Mapping[str, StoredWeight], adapter: AdapterCheckpoint, plan: Plan, metadata: AdapterMetadata
) -> Check:
    """Compare the fingerprint of every adapted weight with the metadata."""
    name = "base weights"
    unknown = 0
    for module, group in plan.modules.items():
        expected = metadata.fingerprints.get(module)
        stored = read_tensor(weights[module].tensor)
        same = None if expected is None else matches_fingerprint(stored, expected, group[0].projection.dtype)
        if adapter.needs_residual_weight(module):
            if same:
                return Check(name, False, f"{module} has its original weight, but the adapter needs residual weights")
        elif same is False:
            return Check(name, False, f"{module} differs from the weight for which the adapter was made")
        # `same` is None if there is no fingerprint, or if rounding to the dtype of the base may explain a difference.
        unknown += same is None
    if adapter.targets_residual_base:
        return Check(name, None, "residual weights have no fingerprint")
    if unknown:
        return Check(
            name, None, f"{unknown} of {len(plan.modules)} cannot be compared: no fingerprint, or a different dtype"
        )
    return Check(name, True, f"{len(plan.modules)} fingerprints agree")


def _check_anchors(weights: Mapping[str, StoredWeight], adapter: AdapterCheckpoint, plan: Plan) -> Iterator[Check]:
    """Compare the anchors with new decompositions, and check whether the update is zero."""
    if adapter.exported:
        yield Check("anchor", None, "an export has none")
        return
    if adapter.targets_residual_base:
        yield Check("anchor", None, "a checkpoint in the residual form has none")
        return
    largest_error, failure, is_trained, anchor_count = 0.0, "", False, 0
    total = len(plan.adapters)
    factors = adapter.read_projection_factors(plan)
    for stored in tqdm(factors, "verifying", total, unit="matrix", leave=False, disable=None):
        planned = stored.planned
        if planned.init.needs_anchor:
            anchor_count += 1
            weight = weights[planned.projection.module]
            weight.validate_floating()
            # In multiples of the tolerance.
            error = _compute_anchor_error(stored, weight.to_matrix(read_tensor(weight.tensor)))
            largest_error = max(largest_error, error)
            if error > 1 and not failure:
                failure = f"{planned.projection.name}: {error:.1e} times the tolerance"
        # These factors are zero before training: `dA` and `dB` with an anchor, `B` without.
        update_factors = stored.deltas if stored.has_anchor else (stored.B,)
        is_trained = is_trained or any(bool(factor.any()) for factor in update_factors)
    detail = failure or f"{anchor_count} anchors, largest error {largest_error:.1e} times the tolerance"
    # In the stock form, training also changes the rows and columns that began as the anchor. If they differ from a new
    # decomposition, this proves nothing about the base.
    if not anchor_count:
        yield Check("anchor", None, "plain LoRA has none")
    elif failure and is_trained and plan.form is Form.STOCK:
        yield Check("anchor", None, "changed by training, as usual in the stock form")
    else:
        yield Check("anchor", not failure, detail)
    if is_trained:
        yield Check("start", None, "trained: the update is not zero")
    else:
        yield Check("start", True, "untrained: the trainable factors are zero, so the update is exactly zero")


def _compute_anchor_error(stored: ProjectionFactors, weight: Tensor) -> float:
    """Compute the distance between an anchor and a new decomposition, as a multiple of the tolerance.

    Args:
        stored: Factors with an anchor.
        weight: Weight (out, in) of the module.

    Returns:
        The larger of the error in the norms of the anchor's rows and columns, and the error in their spans. Values up
        to 1 pass.
    """
    planned = stored.planned
    assert isinstance(planned.init, Spectral)
    rows = select_rows(weight, planned.projection).float()
    A0, B0 = stored.anchor
    if stored.covers_all_rows:
        B0 = select_rows(B0, planned.projection)
    fresh = planned.init.factors(rows, planned.rank, scaling=planned.scaling, generator=torch.Generator())
    # In a half-precision file, `A0`, the sum `B` and `dB` are rounded, and `B0 = B - dB` has the errors of both.
    # The factor 8 leaves a margin.
    tolerance = _ANCHOR_TOLERANCE + 8 * stored.eps
    norm_error = max(
        _compute_relative_error(A0.norm(dim=1), fresh.A.norm(dim=1)),
        _compute_relative_error(B0.norm(dim=0), fresh.B.norm(dim=0)),
    )
    angle_error = max(_compute_angle(A0.mT, fresh.A.mT), _compute_angle(B0, fresh.B))
    # If singular values are close together, the span of the directions is not unique. The anchor then passes if the
    # weight has the same singular values on the span of the anchor as on the span of the new directions. Negligible
    # values are rounding errors, which differ between machines.
    negligible = min_singular_value(rows).double()
    singular_value_error = max(
        _compute_relative_error(
            _compute_singular_values_on_span(matrix, directions).clamp_min(negligible),
            _compute_singular_values_on_span(matrix, fresh_directions).clamp_min(negligible),
        )
        for matrix, directions, fresh_directions in ((rows, A0.mT, fresh.A.mT), (rows.mT, B0, fresh.B))
    )
    return max(norm_error, min(angle_error, singular_value_error)) / tolerance


def _compute_relative_error(this: Tensor, other: Tensor) -> float:
    this, other = this.double(), other.double()
    return float((this - other).abs().max() / other.abs().max().clamp_min(1e-30))


def _compute_angle(this: Tensor, other: Tensor) -> float:
    """Compute the sine of the largest angle between two column spaces."""
    P, Q = (torch.linalg.qr(columns.double()).Q for columns in (this, other))
    return float(torch.linalg.matrix_norm(Q - P @ (P.mT @ Q), 2))


def _compute_singular_values_on_span(weight: Tensor, directions: Tensor) -> Tensor:
    """Compute the singular values of a weight on the span of directions."""
    return torch.linalg.svdvals(weight.double() @ torch.linalg.qr(directions.double()).Q)
