"""How one projection's adapter starts, and which init each role gets."""

from ailora.inits.init import Factors, Init, Kaiming, Size, Spectral, parse_init
from ailora.inits.policy import PRESETS, Policy, parse_policy

__all__ = [
    "PRESETS",
    "Factors",
    "Init",
    "Kaiming",
    "Policy",
    "Size",
    "Spectral",
    "parse_init",
    "parse_policy",
]
