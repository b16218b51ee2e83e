"""Compare the weights of a model before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from ailora.analysis.analysis_result import Analysis, to_plain_data
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
from ailora.formatting import pluralize
from ailora.library_versions import library_versions
from ailora.path_kind import PathKind, detect_path_kind, expand_home
from ailora.recipes.run_folder import RunFolder
from ailora.roles import Role, parse_role

#: Models with a larger median of `|dW| / |W|` may have a different base. The limit is about half of sqrt(2), the ratio
#: for independent weights of equal norm.
_MAX_RELATIVE_UPDATE = 0.7


def analyze(
    base: Path | str,
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
    """Compare a base model with models fine-tuned from it.

    Checkpoints and adapters are streamed: memory holds a single matrix, or a block of rows of all matrices. In the base
    and in each model, every analysed projection is decomposed a few times.
    `ailora.plots.analysis_charts.write_analysis` writes the tables and figures of the result to a folder.

    Args:
        base: Base model: a folder, a hub id in the cache, or `builtin:minilm`.
        models: Fine-tuned models. Each is a hub id in the cache, or the folder of an adapter, of a model, or of a run
            of `ailora train`. If empty, only the base is analysed.
        roles: Roles to analyse.
        role_names: Regular expression -> role, for modules without a naming rule.
        rank: Number of singular directions in the principal and in the minor subspace.
        points: Points of the t-SNE and PCA charts: the weight of each layer (`layers`), or its part for each attention
            head (`heads`). `auto` selects heads for roles in fewer than twelve layers.
        perplexity: Perplexity for t-SNE. None means a quarter of the number of points, at most 30.
        seeds: Different seeds of t-SNE. Only the embedding with the lowest KL divergence is kept.
        top: Number of left singular vectors to test for intruders in each fine-tuned weight. The defaults of `top` and
            `epsilon` come from arXiv 2410.21228 and PEFT.
        epsilon: A singular vector is an intruder if its cosine with every left singular vector of the base is below
            this limit.
        directions: Whether to measure the energy of `dW`, and of the gradient before the first step, in all singular
            directions of `W`. The gradient is computed from a run's data, so only runs of `ailora train` have one.

    Returns:
        Tables, and findings as sentences.

    Raises:
        InputError: A model cannot be read, has not finished training or does not fit the base, or a role or a setting
            is not allowed.
        ModelError: The roles of the base are unknown, the weights are quantized, or an adapter was made for different
            weights.
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
    base_weights = load_base(base, settings.roles, role_names)
    paths = dict(zip(unique_names(models), map(str, models), strict=True))
    finetuned = [load_finetuned(path, name, base_weights) for name, path in paths.items()]
    if settings.directions:
        for model in finetuned:
            _add_gradients(model, paths[model.name], base_weights)
    return _analyze(base_weights, finetuned, paths, settings)


def _add_gradients(model: FinetunedModel, path: str, base: BaseWeights) -> None:
    if detect_path_kind(path) is PathKind.RUN:
        # Import here: the module imports the trainers, and an analysis without gradients does not need them.
        from ailora.analysis.initial_gradient import initial_gradients

        model.gradients = initial_gradients(RunFolder(expand_home(path)), base)
    else:
        model.notes.append(f"{model.name} is not a run, so the gradient before training is unknown")


def _analyze(
    base: BaseWeights, models: Sequence[FinetunedModel], paths: Mapping[str, str], settings: AnalysisSettings
) -> Analysis:
    """Measure weights and updates matrix by matrix, then the embedding and dispersion, which need all pairs."""
    tables = measure_weights(base, models, settings)
    if not tables.spectra:
        raise InputError(f"no weight of the base can be used: {'; '.join(tables.notes)}")
    point_sets = build_point_sets(base, models, settings, tables.damaged)
    # A single point cannot be embedded, because it has no distances.
    grams_by_set = [(point_set, compute_gram(base, point_set)) for point_set in point_sets if len(point_set.points) > 1]
    embeddings = [embed(point_set, gram, settings) for point_set, gram in grams_by_set]
    dispersion = measure_dispersion(grams_by_set)
    embedding_rows = [row for embedding in embeddings for row in embedding.rows]
    deltas, spectra = _to_frame(tables.deltas, ("norm", "relative")), _to_frame(tables.spectra, ())
    directions = _to_frame(tables.directions, ("update", "side", "band", "start", "stop", "share", "chance"))
    info = {
        "format": 1,
        "versions": library_versions(),
        "base": base.path,
        # The fine-tuned models.
        "after": paths,
        "kinds": {model.name: model.kind for model in models},
        "settings": asdict(settings)
        | {"roles": [role.value for role in settings.roles], "role_names": dict(base.role_names or {})},
        "embedding": [embedding.info for embedding in embeddings],
        "dispersion": dispersion,
        "findings": summarize_findings(dispersion, deltas, spectra, directions=directions, settings=settings),
        "notes": [
            *(note for model in models for note in model.notes),
            *tables.notes,
            *_describe_doubts(embeddings, deltas),
        ],
    }
    embedding_table = _to_frame(embedding_rows, ("cloud", "pca_x", "tsne_x"))
    return Analysis(to_plain_data(info), embedding_table, deltas, spectra, directions)


def _describe_doubts(embeddings: Sequence[Embedding], deltas: pd.DataFrame) -> Iterator[str]:
    """Yield notes about point sets without t-SNE, and about models that may have a different base."""
    for embedding in embeddings:
        if "perplexity" not in embedding.info:
            points = pluralize(embedding.info["points"], "point")
            # `cloud` is the name of the point set.
            yield f"{embedding.info['cloud']}: no t-SNE, because {points} are too few, or lie on a line"
    relative_updates: Mapping[str, float] = deltas.groupby("model", sort=False)["relative"].median().to_dict()
    for model, relative_update in relative_updates.items():
        if relative_update > _MAX_RELATIVE_UPDATE:
            yield f"{model} differs from the base by {relative_update:.2g} of |W|: was it trained from this base?"


def _to_frame(rows: list[Row], columns: Sequence[str]) -> pd.DataFrame:
    """Convert rows to a table. Without rows, the table has the main columns."""
    # Readers select rows by these columns, even if only the base was analysed.
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["model", "layer", "role", *columns])
