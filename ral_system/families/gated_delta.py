"""Gated delta-rule layers (arXiv 2412.06464) over packed groups, whose states must not flow from one into the next.

    S_t = exp(g_t) S_t-1 + k_t (beta_t (v_t - (exp(g_t) S_t-1)' k_t))',    o_t = S_t' q_t / sqrt(K)

q and k, of unit length, and v come from a causal convolution over the last few tokens. A prompt's first token begins
with S = 0 and nothing before it, and each of its responses with the prompt's last S and last tokens: as if it stood
alone after the prompt.

Suffixes: B sequences, T tokens, C channels of q, k and v together, V value heads, K and D sizes of keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.nn.utils.rnn import pad_sequence
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5GatedDeltaNet,
    causal_conv1d_fn,
    torch_chunk_gated_delta_rule,
)

from ral_system.attention.packing import Packing


class PackedGatedDeltaNet(Qwen3_5GatedDeltaNet):
    """A layer of transformers whose forward pass may take `packing`.

    Its matrices multiply the whole stream at once, whatever is packed into it, so ranks under ZeRO-3 gather the
    same parameters equally often.
    """

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        *,
        packing: Packing | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return [1, T, E] of a packed stream [1, T, E]; without `packing` what transformers computes."""
        if packing is None:
            return super().forward(hidden_states, cache_params, attention_mask, **kwargs)
        qkv_TC, z_TX, beta_TV, a_TV = (
            linear(hidden_states)[0] for linear in (self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a)
        )
        g_TV = -self.A_log.float().exp() * softplus(a_TV.float() + self.dt_bias)
        of_groups = zip(*(x.split(packing.lengths) for x in (qkv_TC, g_TV, beta_TV.sigmoid())), strict=True)
        found = [
            self._group(group.prompt, group.responses, *of) for group, of in zip(packing.groups, of_groups, strict=True)
        ]
        normed = self.norm(torch.cat(found).flatten(0, 1), z_TX.reshape(-1, self.head_v_dim))
        return self.out_proj(normed.view(1, *z_TX.shape))

    def _group(self, prompt: int, responses: tuple[int, ...], *inputs: Tensor) -> Tensor:
        """[T, V, D] of one group, from its qkv [T, C], g [T, V] and beta [T, V]."""
        of_prompt, of_responses = zip(*(x.split([prompt, len(x) - prompt]) for x in inputs), strict=True)
        context_TC = of_prompt[0].new_zeros(0, self.conv_dim)
        found, state = [], None
        if prompt:
            attended, state = self._sequences(context_TC[None], None, *(x[None] for x in of_prompt))
            found.append(attended[0])
            context_TC = of_prompt[0][max(0, prompt + 1 - self.conv_kernel_size) :]
            state = state.expand(len(responses), -1, -1, -1)
        # after a shorter response: beta = 0, so its state does not change, and what comes out is cut off
        padded = (pad_sequence(list(x.split(responses)), batch_first=True) for x in of_responses)
        attended, _ = self._sequences(context_TC.expand(len(responses), -1, -1), state, *padded)
        return torch.cat([*found, *(one[:length] for one, length in zip(attended, responses, strict=True))])

    def _sequences(
        self, context_BTC: Tensor, state_BVKD: Tensor | None, qkv_BTC: Tensor, g_BTV: Tensor, beta_BTV: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs [B, T, V, D] and last states [B, V, K, D], after up to kernel - 1 tokens of context and a state."""
        weight, context = self.conv1d.weight.squeeze(1), context_BTC.shape[1]
        seen_BCT = torch.cat([context_BTC, qkv_BTC], dim=1).transpose(1, 2)
        convolved_BTC = causal_conv1d_fn(seen_BCT, weight, self.conv1d.bias, self.activation).transpose(1, 2)
        parts = convolved_BTC[:, context:].split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        query, key, value = (x.unflatten(-1, (heads, -1)) for x, heads in zip(parts, self._heads, strict=True))
        query, key = (x.repeat_interleave(self.num_v_heads // self.num_k_heads, dim=2) for x in (query, key))
        return torch_chunk_gated_delta_rule(
            query,
            key,
            value,
            g=g_BTV,
            beta=beta_BTV,
            initial_state=state_BVKD,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )

    @property
    def _heads(self) -> tuple[int, int, int]:
        return self.num_k_heads, self.num_k_heads, self.num_v_heads
