"""Morpheo runs other people's machine-learning code on private data, in isolated containers."""

__version__ = "0.1.0"
