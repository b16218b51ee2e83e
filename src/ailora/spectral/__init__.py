"""Matrices only: singular triplets of one band of a matrix's spectrum."""

from ailora.spectral.cache import SpectralCache, cached_svd, without_cache
from ailora.spectral.svd import truncated_svd
from ailora.spectral.triplets import Band, Certificate, Triplets

__all__ = ["Band", "Certificate", "SpectralCache", "Triplets", "cached_svd", "truncated_svd", "without_cache"]
