"""The triangular discrimination of two rows of probabilities (Vincze, Le Cam)."""

from torch import Tensor

from ral_system.algorithms.divergences import Divergence


def terms_and_slopes(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """(p - q)² / (p + q) and its slope in p, (p - q) (p + 3 q) / (p + q)²; 0 where both are 0."""
    total = (p + q).clamp(min=1e-30)
    share = (p - q) / total
    return (p - q) * share, share * (p + 3 * q) / total


TRIANGULAR = Divergence(terms_and_slopes, title="Triangular discrimination")
