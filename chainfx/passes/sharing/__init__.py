"""What sharing weights is made of: k-means on a line, and bits for each codebook within a budget."""

from chainfx.passes.sharing.allocation import allocate
from chainfx.passes.sharing.clustering import INITS, Init, Values, cluster, members

__all__ = ["INITS", "Init", "Values", "allocate", "cluster", "members"]
