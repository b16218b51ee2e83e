"""Policies: an init for each role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ailora.errors import InputError, unknown_name
from ailora.inits.init import Init
from ailora.inits.init_spec import parse_init
from ailora.inits.kaiming import Kaiming
from ailora.inits.spectral import Spectral
from ailora.roles import Role, parse_role
from ailora.spectral import Band


@dataclass(frozen=True)
class Policy:
    """Init of each projection's adapter, by the role of the projection.

    Attributes:
        name: Name in tables, files and errors.
        by_role: Role -> init, for the roles named by the policy.
        default: Init of the roles missing in `by_role`. None means no adapter for these roles.

    Examples:
        >>> from ailora import Kaiming, Role, Spectral
        >>> policy = Policy("query only", {Role.QUERY: Spectral(Band.PRINCIPAL)})
        >>> policy.init_for(Role.QUERY).to_dict(), policy.init_for(Role.VALUE)
        ({'init': 'principal', 'size': 'singular'}, None)
    """

    name: str
    by_role: Mapping[Role, Init] = field(default_factory=dict)
    default: Init | None = None

    def init_for(self, role: Role) -> Init | None:
        """Return the init of a role's projections, or None if the projections get no adapter."""
        return self.by_role.get(role, self.default)

    @property
    def default_roles(self) -> tuple[Role, ...]:
        """Roles to adapt by default: those in `by_role`, or query and value if `by_role` is empty."""
        return tuple(self.by_role) or (Role.QUERY, Role.VALUE)

    def to_dict(self) -> dict[str, object]:
        """Return the policy as plain data, the input of `parse_policy`."""
        return {
            "name": self.name,
            "by_role": {role.value: init.to_dict() for role, init in self.by_role.items()},
            "default": self.default.to_dict() if self.default else None,
        }


#: A policy, the name of a preset, `{role: init}`, or the result of `Policy.to_dict`.
PolicySpec = Policy | str | Mapping[str, object]

_PRINCIPAL, _MINOR = Spectral(Band.PRINCIPAL), Spectral(Band.MINOR)

PRESETS: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        # arXiv 2510.08034: fine-tuning changes W^Q much and W^V little, so the query starts from the principal band and
        # the value from the minor band.
        Policy("ailora", {Role.QUERY: _PRINCIPAL, Role.VALUE: _MINOR}, default=Kaiming()),
        # The control of arXiv 2510.08034, with the bands exchanged.
        Policy("reversed", {Role.QUERY: _MINOR, Role.VALUE: _PRINCIPAL}, default=Kaiming()),
        # arXiv 2404.02948
        Policy("pissa", default=_PRINCIPAL),
        # arXiv 2406.09044
        Policy("milora", default=_MINOR),
        # arXiv 2106.09685
        Policy("lora", default=Kaiming()),
    )
}
"""Named policies: name -> policy.

arXiv 2510.08034 has inits only for query and value. `ailora` and `reversed` start all other roles as plain LoRA, the
neutral choice.
"""


def parse_policy(spec: PolicySpec) -> Policy:
    """Parse a preset's name, a mapping `{role: init}` or the result of `Policy.to_dict`.

    Returns:
        The policy, named `custom` if it comes from a mapping `{role: init}`.

    Raises:
        InputError: `spec` is neither a name nor a mapping; or a preset, a role or an init is unknown; or the mapping
            adapts no role, or excludes a role that has a default init.
    """
    if isinstance(spec, Policy):
        return spec
    if isinstance(spec, str):
        if spec not in PRESETS:
            raise unknown_name("policy", spec, PRESETS)
        return PRESETS[spec]
    if not isinstance(spec, Mapping):
        raise InputError(f"policy must be the name of a preset or a mapping from roles to inits, got {spec!r}")
    if "by_role" in spec:
        return _parse_policy_dict(spec)
    by_role = _drop_none(_parse_inits(spec))
    if not by_role:
        raise InputError(f"the policy {dict(spec)!r} adapts no role: give at least one role an init other than 'none'")
    return Policy("custom", by_role)


def _parse_policy_dict(spec: Mapping[str, object]) -> Policy:
    """Parse the result of `Policy.to_dict`, which users may have edited."""
    inits, default = _parse_inits(spec["by_role"]), parse_init(spec.get("default"))
    if default is not None and None in inits.values():
        # `Policy.init_for` would give the role the default init.
        raise InputError(
            f"by_role of the policy {dict(spec)!r} excludes a role by 'none', but the default init applies to it: "
            "leave out the role, and choose the roles to adapt by the option `roles`"
        )
    return Policy(str(spec.get("name", "custom")), _drop_none(inits), default)


def _parse_inits(spec: object) -> dict[Role, Init | None]:
    """Parse a mapping from roles to inits, where None stands for the init `none`."""
    if not isinstance(spec, Mapping):
        raise InputError(f"by_role of a policy must be a mapping from roles to inits, got {spec!r}")
    return {parse_role(role): parse_init(init) for role, init in spec.items()}


def _drop_none(inits: Mapping[Role, Init | None]) -> dict[Role, Init]:
    return {role: init for role, init in inits.items() if init is not None}
