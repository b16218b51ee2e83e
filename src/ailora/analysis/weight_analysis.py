"""Weights before and after fine-tuning, as tables and pictures: `ailora analyze`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from ailora.analysis.analysis_folder import plain, validate_output_dir
from ailora.analysis.analysis_result import Analysis, write_analysis
from ailora.analysis.analysis_settings import Settings
from ailora.analysis.dispersion import dispersions
from ailora.analysis.embedding import Embedded, embed
from ailora.analysis.findings import findings
from ailora.analysis.gram_matrix import clouds, gram
from ailora.analysis.load_models import names_of, open_after, open_base
from ailora.analysis.model_weights import After, Base
from ailora.analysis.table_ops import rows_where
from ailora.analysis.weight_stats import Matrices, measure_matrices
from ailora.errors import InputError
from ailora.model_loading import model_folder
from ailora.plan.adapter_metadata import library_versions
from ailora.plots.analysis_figures import analysis_charts
from ailora.plots.matplotlib_backend import draw
from ailora.roles import Role

#: An update of this size, relative to the weight, is none: two independent weights differ by 1.4.
_ANOTHER_MODEL = 0.7


def analyze(
    base: str,
    after: Sequence[Path | str],
    out: Path | str,
    *,
    roles: Iterable[Role | str] = (Role.QUERY, Role.VALUE),
    role_names: Mapping[str, str] | None = None,
    force: bool = False,
    **options: Any,
) -> Analysis:
    """Compare a model with what was made of it, and write tables and pictures.

    Checkpoints and adapters are streamed: one matrix, or one block of rows of all matrices, is in memory at a time.
    The cost is that of a few decompositions of every projection of the roles, for the base and for each model.

    Args:
        base: the base model: a folder, a hub id in the cache, or `builtin:minilm`.
        after: models that were made of it: folders of adapters, of runs of `ailora train`, of models; or models as
            `base`. None at all shows the base alone.
        out: the folder to write: `analysis.json`, `embedding.parquet`, `deltas.parquet`, `spectra.parquet`, `figures/`.
        roles: which projections are looked at.
        role_names: regular expression -> role, for modules that no rule knows.
        force: replace the analysis that `out` holds.
        **options: `rank`, `points`, `perplexity`, `seeds`, `top`, `epsilon`, as in `Settings`.

    Raises:
        InputError, ModelError: a model cannot be read, does not fit the base, or has not finished; a role or an option
            is not allowed; `out` holds something else. Nothing is written then.
    """
    out = Path(out).expanduser()
    settings = Settings.of(roles, **options)
    paths = [str(path) for path in after]
    validate_output_dir(out, [model_folder(base), *map(Path, paths)], force=force)
    opened = open_base(base, settings, role_names)
    names = names_of(paths)
    models = [open_after(path, name, opened, base) for path, name in zip(paths, names, strict=True)]
    found = _Found.of(opened, models, settings)
    made = found.analysis({"base": base, "after": dict(zip(names, paths, strict=True))})
    charts = analysis_charts(made)

    def pictures(folder: Path) -> None:
        for chart in charts:
            draw([chart], folder / f"{chart.name}.svg", columns=1)

    write_analysis(made, out, pictures)
    return made


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
