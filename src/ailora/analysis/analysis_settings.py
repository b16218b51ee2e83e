"""What an analysis is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from ailora.errors import InputError, unknown_name
from ailora.roles import Role, parse_role

Points = Literal["auto", "layers", "heads"]


@dataclass(frozen=True)
class Settings:
    """The choices behind every number.

    Attributes:
        roles: which projections are looked at.
        rank: how many singular directions the principal and the minor subspace have.
        points: what a point of the embedding is: a layer, or each of its heads; `auto`: heads where a role has fewer
            than twelve layers.
        perplexity: of t-SNE; None: a quarter of the points, 30 at most.
        seeds: of t-SNE; the picture is the one of the lowest divergence.
        top: `k`, how many left singular vectors of a fine-tuned weight may be intruders.
        epsilon: below which cosine a singular vector is an intruder. Defaults of `top` and `epsilon` as in
            arXiv 2410.21228, which PEFT has too.
    """

    roles: tuple[Role, ...] = (Role.QUERY, Role.VALUE)
    rank: int = 8
    points: Points = "auto"
    perplexity: float | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    top: int = 10
    epsilon: float = 0.5

    @classmethod
    def of(cls, roles: Iterable[Role | str], **options: object) -> Settings:
        """Checked settings.

        Raises:
            InputError: an unknown role, or a number out of its range.
        """
        made = cls(tuple(dict.fromkeys(parse_role(role) for role in roles)), **options)  # type: ignore[arg-type]
        if not made.roles:
            raise InputError(f"roles are at least one of {', '.join(role.value for role in Role)}")
        for name, value in (("rank", made.rank), ("top", made.top)):
            if type(value) is not int or value < 1:
                raise InputError(f"{name} {value!r} is not allowed: a whole number from 1")
        if made.points not in get_args(Points):
            raise unknown_name("kind of points", made.points, get_args(Points))
        if made.perplexity is not None and not made.perplexity > 0:
            raise InputError(f"perplexity {made.perplexity!r} is not allowed: a number above 0")
        if not made.seeds or not all(type(seed) is int and seed >= 0 for seed in made.seeds):
            raise InputError(f"seeds {made.seeds!r} are not allowed: at least one whole number from 0")
        if not 0 < made.epsilon <= 1:
            raise InputError(f"epsilon {made.epsilon!r} is not allowed: above 0, at most 1")
        return made
