"""Reinforced Attention Learning for vision-language models. This package imports neither ray nor hydra."""
