"""Compare the weights of a model before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from ailora.analysis.analysis_folder import plain
from ailora.analysis.analysis_result import Analysis
from ailora.analysis.analysis_settings import Points, Settings
from ailora.analysis.dispersion import dispersions
from ailora.analysis.embedding import Embedded, embed
from ailora.analysis.findings import findings
from ailora.analysis.gram_matrix import clouds, gram
from ailora.analysis.load_models import names_of, open_after, open_base
from ailora.analysis.model_weights import After, Base
from ailora.analysis.table_ops import rows_where
from ailora.analysis.weight_stats import Matrices, measure_matrices
from ailora.errors import InputError
from ailora.plan.adapter_metadata import library_versions
from ailora.roles import Role

#: An update of this size, relative to the weight, is none: two independent weights differ by 1.4.
_ANOTHER_MODEL = 0.7


def analyze(
    base: str,
    models: Sequence[Path | str] = (),
    *,
    roles: Iterable[Role | str] = (Role.QUERY, Role.VALUE),
    role_names: Mapping[str, str] | None = None,
    rank: int = 8,
    points: Points = "auto",
    perplexity: float | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    top: int = 10,
    epsilon: float = 0.5,
) -> Analysis:
    """Compare a model with the models that were fine-tuned from it.

    Checkpoints and adapters are streamed: one matrix, or one block of rows of all matrices, is in memory at a time.
    The cost is that of a few decompositions of every projection of the roles, for the base and for each model.
    `ailora.plots.analysis_figures.write_analysis` writes the result to a folder, with figures.

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

    Returns:
        The tables, and the observations in words.

    Raises:
        InputError, ModelError: a model cannot be read, does not fit the base, or has not finished; a role or a setting
            is not allowed.
    """
    settings = Settings.of(
        roles, rank=rank, points=points, perplexity=perplexity, seeds=tuple(seeds), top=top, epsilon=epsilon
    )
    paths = [str(path) for path in models]
    opened = open_base(base, settings, role_names)
    names = names_of(paths)
    after = [open_after(path, name, opened, base) for path, name in zip(paths, names, strict=True)]
    found = _Found.of(opened, after, settings)
    return found.analysis({"base": base, "after": dict(zip(names, paths, strict=True))})


@dataclass(frozen=True)
class _Found:
    """What the passes over the weights gave."""

    models: Sequence[After]
    settings: Settings
    matrices: Matrices
    embedded: list[Embedded]
    dispersion: dict[str, Any]

    @classmethod
    def of(cls, base: Base, models: Sequence[After], settings: Settings) -> _Found:
        """Measure matrix by matrix, then all distances.

        Raises:
            InputError: no weight of the base can be used.
        """
        matrices = measure_matrices(base, models, settings)
        if not matrices.spectra:
            raise InputError(f"no weight of the base can be used: {'; '.join(matrices.notes)}")
        made = [cloud for cloud in clouds(base, models, settings, matrices.damaged) if len(cloud.points) > 1]
        products = [(cloud, gram(base, cloud)) for cloud in made]
        embedded = [embed(cloud, found, settings) for cloud, found in products]
        return cls(models, settings, matrices, embedded, dispersions(products))

    def analysis(self, asked: Mapping[str, Any]) -> Analysis:
        """The tables, and what they come to."""
        embedding = _table([row for made in self.embedded for row in made.rows], ("cloud", "pca_x", "tsne_x"))
        deltas = _table(self.matrices.deltas, ("norm", "relative"))
        spectra = _table(self.matrices.spectra, ())
        settings = asdict(self.settings) | {"roles": [role.value for role in self.settings.roles]}
        info = {
            "format": 1,
            "versions": library_versions(),
            **asked,
            "kinds": {m.name: m.kind for m in self.models},
            "settings": settings,
            "embedding": [made.facts for made in self.embedded],
            "dispersion": self.dispersion,
            "findings": findings(self.dispersion, deltas, spectra, settings),
            "notes": list(self._notes(deltas)),
        }
        return Analysis(plain(info), embedding, deltas, spectra)

    def _notes(self, deltas: pd.DataFrame) -> Iterator[str]:
        for model in self.models:
            yield from model.notes
        yield from self.matrices.notes
        for made in self.embedded:
            if "perplexity" not in made.facts:
                yield f"{made.facts['cloud']}: too few different points for t-SNE ({made.facts['points']})"
        for model in self.models:
            sizes = [row["relative"] for row in rows_where(deltas, model=model.name)]
            if sizes and median(sizes) > _ANOTHER_MODEL:
                yield f"{model.name} differs from the base by {median(sizes):.2g} of |W|: was it made of this base?"


def _table(rows: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """A table, which has the columns that are asked for also where it has no rows."""
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["model", "layer", "role", *columns])
