"""Distributed large-scale pretraining of MLP-Mixer: exact, elastic, resumable."""

__version__ = "0.1.0"
