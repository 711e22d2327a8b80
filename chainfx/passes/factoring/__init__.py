"""Factors of weights of low rank."""

from chainfx.passes.factoring.factors import Factor, SpatialFactors, TuckerFactors, factors_of

__all__ = [
    "Factor",
    "SpatialFactors",
    "TuckerFactors",
    "factors_of",
]
