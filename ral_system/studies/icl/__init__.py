"""Multimodal in-context regression, where the right attention is known: `ral-study icl`, docs/studies/icl.md."""
