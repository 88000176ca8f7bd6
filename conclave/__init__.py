"""Conclave trains an ensemble of image classifiers from one file, tracks it, fuses it and exports one model."""

__version__ = "0.2.0"

__all__ = ["__version__"]
