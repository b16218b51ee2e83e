"""Inits of a projection's factors, and policies: an init for each role."""

from ailora.inits.init import Factors, Init
from ailora.inits.init_spec import parse_init
from ailora.inits.kaiming import Kaiming
from ailora.inits.policy import PRESETS, Policy, PolicySpec, parse_policy
from ailora.inits.spectral import Size, Spectral

__all__ = [
    "PRESETS",
    "Factors",
    "Init",
    "Kaiming",
    "Policy",
    "PolicySpec",
    "Size",
    "Spectral",
    "parse_init",
    "parse_policy",
]
