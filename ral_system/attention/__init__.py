"""Attention rows as policies: where a model looks, and how far that is from where it, or another, looked."""

from ral_system.attention.divergence import attention_divergence
from ral_system.attention.policy import attention_policy

__all__ = ["attention_divergence", "attention_policy"]
