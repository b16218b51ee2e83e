"""Policies: which init each role gets."""

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
    """The init of each projection's adapter, by the projection's role.

    Attributes:
        name: how tables, files and errors call it.
        by_role: the inits of the roles that the policy names.
        default: the init of every other role; None: those stay frozen.
    """

    name: str
    by_role: Mapping[Role, Init] = field(default_factory=dict)
    default: Init | None = None

    def init_for(self, role: Role) -> Init | None:
        """Return the init of a role's projections; None when they stay frozen."""
        return self.by_role.get(role, self.default)

    @property
    def default_roles(self) -> tuple[Role, ...]:
        """Roles that are adapted when the user names none: those that the policy names, else query and value."""
        return tuple(self.by_role) or (Role.QUERY, Role.VALUE)

    def to_dict(self) -> dict[str, object]:
        """Return the policy as plain data; `parse_policy` reads it back."""
        return {
            "name": self.name,
            "by_role": {role.value: init.to_dict() for role, init in self.by_role.items()},
            "default": self.default.to_dict() if self.default else None,
        }


#: What names a policy: itself, a preset, `{role: init}`, or what `Policy.to_dict` returned.
PolicySpec = Policy | str | Mapping[str, object]

_PRINCIPAL, _MINOR = Spectral(Band.PRINCIPAL), Spectral(Band.MINOR)

#: The named policies. Roles that `ailora` and `reversed` do not name start as plain LoRA, if adapted.
PRESETS: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        # arXiv 2510.08034: the query moves, so it starts principal; the value is stable, so it starts minor.
        Policy("ailora", {Role.QUERY: _PRINCIPAL, Role.VALUE: _MINOR}, default=Kaiming()),
        # The same with the bands exchanged: the paper's control.
        Policy("reversed", {Role.QUERY: _MINOR, Role.VALUE: _PRINCIPAL}, default=Kaiming()),
        # arXiv 2404.02948
        Policy("pissa", default=_PRINCIPAL),
        # arXiv 2406.09044
        Policy("milora", default=_MINOR),
        # arXiv 2106.09685
        Policy("lora", default=Kaiming()),
    )
}


def parse_policy(spec: PolicySpec) -> Policy:
    """Parse a preset's name, a mapping `{role: init}` or the output of `Policy.to_dict`.

    Raises:
        InputError: unknown preset, role or init; a mapping that adapts nothing.
    """
    if isinstance(spec, Policy):
        return spec
    if isinstance(spec, str):
        if spec not in PRESETS:
            raise unknown_name("policy", spec, PRESETS)
        return PRESETS[spec]
    if not isinstance(spec, Mapping):
        raise InputError(f"a policy is a preset's name or a mapping from role to init, not {spec!r}")
    if "by_role" in spec:
        return Policy(str(spec.get("name", "custom")), _parse_by_role(spec["by_role"]), parse_init(spec.get("default")))
    by_role = _parse_by_role(spec)
    if not by_role:
        raise InputError(f"the policy {dict(spec)!r} adapts no role: give at least one an init other than none")
    return Policy("custom", by_role)


def _parse_by_role(spec: object) -> dict[Role, Init]:
    if not isinstance(spec, Mapping):
        raise InputError(f"by_role is a mapping from role to init, not {spec!r}")
    inits = {parse_role(role): parse_init(init) for role, init in spec.items()}
    return {role: init for role, init in inits.items() if init is not None}
