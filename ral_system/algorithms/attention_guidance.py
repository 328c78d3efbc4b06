"""The attention-guided training objective of AVAR (arXiv 2603.03825). A pure function. Suffixes: L layers, H heads."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6


def attention_guidance(log_image_LH: Tensor, log_system_LH: Tensor | None, *, image: float, system: float) -> Tensor:
    """a · L_enh + b · L_sup of one sequence, a scalar to be minimised; Q are the question's tokens.

        L_enh = - mean_{l,h} log( mean_{q in Q, k in image} A_qk )
        L_sup = + mean_{l,h} log( mean_{q in Q, k in system} A_qk + 1e-6 )

    `log_image` and `log_system` are the logarithms of the inner means (`mean_attention.log_mean_attention`). Without a
    system turn (None) L_sup is left out.
    """
    loss = -image * log_image_LH.mean()
    return loss if log_system_LH is None else loss + system * torch.log(log_system_LH.exp() + EPSILON).mean()
