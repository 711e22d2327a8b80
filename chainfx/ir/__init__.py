"""What a model is: capture into a graph, the graph and its rules, its channels, and its form on disk.

Four rooms, imported one way: :mod:`~chainfx.ir.graph` lies under :mod:`~chainfx.ir.capture`,
:mod:`~chainfx.ir.channels` and :mod:`~chainfx.ir.artifact`.
"""

from chainfx.ir import artifact, capture, channels, graph

__all__ = ["artifact", "capture", "channels", "graph"]
