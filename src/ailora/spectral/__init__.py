"""Singular triplets of matrices, from one band of the spectrum."""

from ailora.spectral.singular_triplets import Band, Certificate, Triplets
from ailora.spectral.svd_cache import SpectralCache, cached_svd, without_cache
from ailora.spectral.truncated_svd import frobenius_norm, truncated_svd

__all__ = [
    "Band",
    "Certificate",
    "SpectralCache",
    "Triplets",
    "cached_svd",
    "frobenius_norm",
    "truncated_svd",
    "without_cache",
]
