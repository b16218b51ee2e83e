"""Matrices only: singular triplets of one band of a matrix's spectrum."""

from ailora.spectral.svd import truncated_svd
from ailora.spectral.triplets import Band, Triplets

__all__ = ["Band", "Triplets", "truncated_svd"]
