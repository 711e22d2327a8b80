"""The version of chainfx, by itself so that every room can ask for it."""

__all__ = ["__version__"]

__version__ = "0.2.0"
