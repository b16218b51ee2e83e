"""Compare the weights of a model before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from ailora.analysis.analysis_result import Analysis, to_json
from ailora.analysis.analysis_settings import AnalysisSettings, PointKind
from ailora.analysis.dispersion import measure_dispersion
from ailora.analysis.embedding import Embedding, embed
from ailora.analysis.findings import summarize_findings
from ailora.analysis.gram_matrix import build_point_sets, compute_gram
from ailora.analysis.load_models import load_base, load_finetuned, unique_names
from ailora.analysis.model_weights import BaseWeights, FinetunedModel
from ailora.analysis.table_ops import Row
from ailora.analysis.weight_stats import measure_weights
from ailora.errors import InputError
from ailora.path_kind import PathKind, detect_path_kind
from ailora.plan.adapter_metadata import library_versions
from ailora.recipes.run_folder import RunFolder
from ailora.roles import Role, parse_role

#: An update of this size, relative to the weight, is none: two independent weights differ by 1.4.
_UNRELATED_MODEL = 0.7


def analyze(
    base: str,
    models: Sequence[Path | str] = (),
    *,
    roles: Iterable[Role | str] = (Role.QUERY, Role.VALUE),
    role_names: Mapping[str, str] | None = None,
    rank: int = 8,
    points: PointKind = "auto",
    perplexity: float | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    top: int = 10,
    epsilon: float = 0.5,
    directions: bool = False,
) -> Analysis:
    """Compare a model with the models that were fine-tuned from it.

    Checkpoints and adapters are streamed: one matrix, or one block of rows of all matrices, is in memory at a time.
    The cost is that of a few decompositions of every projection of the roles, for the base and for each model.
    `ailora.plots.analysis_charts.write_analysis` writes the result to a folder, with figures.

    Args:
        base: the base model: a folder, a hub id in the cache, or `builtin:minilm`.
        models: the fine-tuned models: folders of adapters, of runs of `ailora train`, of models; or models as `base`.
            Without any, the base is analysed alone.
        roles: the projections to analyse.
        role_names: regular expression -> role, for modules that no rule knows.
        rank: number of singular directions of the principal and of the minor subspace.
        points: a point of the embedding is a layer, or each of its `heads`; `auto`: heads where a role has fewer than
            twelve layers.
        perplexity: of t-SNE; None: a quarter of the points, 30 at most.
        seeds: of t-SNE; the embedding is the one of the lowest divergence.
        top: number of left singular vectors of a fine-tuned weight that may be intruders.
        epsilon: the cosine below which a singular vector is an intruder. Defaults of `top` and `epsilon` as in
            arXiv 2410.21228, which PEFT has too.
        directions: measure over the whole spectrum which singular directions of `W` hold the energy of `dW`, and of the
            gradient before the first step of every model that is a run of `ailora train` (its data are read again).

    Returns:
        The tables, and the observations in words.

    Raises:
        InputError, ModelError: a model cannot be read, does not fit the base, or has not finished; a role or a setting
            is not allowed.
    """
    settings = AnalysisSettings(
        roles=tuple(dict.fromkeys(parse_role(role) for role in roles)),
        rank=rank,
        points=points,
        perplexity=perplexity,
        seeds=tuple(seeds),
        top=top,
        epsilon=epsilon,
        directions=directions,
    )
    loaded = load_base(base, settings.roles, role_names)
    paths = dict(zip(unique_names(models), map(str, models), strict=True))
    finetuned = [load_finetuned(path, name, loaded) for name, path in paths.items()]
    if settings.directions:
        for model in finetuned:
            _add_gradients(model, paths[model.name], loaded)
    return _analyze(loaded, finetuned, paths, settings)


def _add_gradients(model: FinetunedModel, path: str, base: BaseWeights) -> None:
    if detect_path_kind(path) is PathKind.RUN:
        # Imports the trainers, which an analysis of weights alone does not need.
        from ailora.analysis.initial_gradient import initial_gradients

        model.gradients = initial_gradients(RunFolder(Path(path).expanduser()), base)
    else:
        model.notes.append(f"{model.name} is no run: its gradient before training is unknown")


def _analyze(
    base: BaseWeights, models: Sequence[FinetunedModel], paths: Mapping[str, str], settings: AnalysisSettings
) -> Analysis:
    """Measure weights and updates matrix by matrix, then all distances."""
    tables = measure_weights(base, models, settings)
    if not tables.spectra:
        raise InputError(f"no weight of the base can be used: {'; '.join(tables.notes)}")
    point_sets = build_point_sets(base, models, settings, tables.damaged)
    grams = [(points, compute_gram(base, points)) for points in point_sets if len(points.points) > 1]
    embeddings = [embed(points, products, settings) for points, products in grams]
    dispersion = measure_dispersion(grams)
    embedding = _table([row for each in embeddings for row in each.rows], ("cloud", "pca_x", "tsne_x"))
    deltas, spectra = _table(tables.deltas, ("norm", "relative")), _table(tables.spectra, ())
    directions = _table(tables.directions, ("update", "side", "band", "start", "stop", "share", "chance"))
    info = {
        "format": 1,
        "versions": library_versions(),
        "base": base.path,
        "after": paths,
        "kinds": {model.name: model.kind for model in models},
        "settings": asdict(settings) | {"roles": [role.value for role in settings.roles]},
        "embedding": [each.info for each in embeddings],
        "dispersion": dispersion,
        "findings": summarize_findings(dispersion, deltas, spectra, directions=directions, settings=settings),
        "notes": [
            *(note for model in models for note in model.notes),
            *tables.notes,
            *_notes(embeddings, deltas),
        ],
    }
    return Analysis(to_json(info), embedding, deltas, spectra, directions)


def _notes(embeddings: Sequence[Embedding], deltas: pd.DataFrame) -> Iterator[str]:
    """Say which point sets have no t-SNE, and which models may have another base."""
    for embedding in embeddings:
        if "perplexity" not in embedding.info:
            yield f"{embedding.info['cloud']}: too few different points for t-SNE ({embedding.info['points']})"
    sizes: Mapping[str, float] = deltas.groupby("model", sort=False)["relative"].median().to_dict()
    for model, size in sizes.items():
        if size > _UNRELATED_MODEL:
            yield f"{model} differs from the base by {size:.2g} of |W|: was it made of this base?"


def _table(rows: list[Row], columns: Sequence[str]) -> pd.DataFrame:
    """Make a table, which has its main columns also where it has no rows."""
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["model", "layer", "role", *columns])
