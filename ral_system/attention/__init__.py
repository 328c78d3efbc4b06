"""Attention rows as policies: where a model looks, and how far that is from a reference."""

from ral_system.attention.divergence import attention_divergence, policy_blocks
from ral_system.attention.policy import attention_policy
from ral_system.attention.record import record_attention

__all__ = ["attention_divergence", "attention_policy", "policy_blocks", "record_attention"]
