"""Reinforced Attention Learning for vision-language models. This package imports neither ray nor hydra."""

__version__ = "0.1.0"
