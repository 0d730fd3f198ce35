"""LLaMA: token embedding, N blocks, a final norm and a linear head (arXiv 2302.13971, section 2.2).

The names of the modules are those of Meta's checkpoints, and so is the rotary layout: Meta's tensors load as they are.
`adapter_layout` translates both to Hugging Face's, for those who speak its formats.

Letters: B batch, T tokens, S keys, C model width, D head size, V vocabulary.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llama.block import Block
from llama.cache import KVCache
from llama.config import LlamaConfig
from llama.documents import Documents
from llama.linear import Linear
from llama.masks import causal_mask, padding_mask
from llama.norm import RMSNorm
from llama.one_token import through_blocks
from llama.rotary import hf_row_order, rotary_table


@dataclass(frozen=True)
class AdapterSlot:
    """Where a linear module lives in Hugging Face's model.

    Attributes:
        key: its module name there.
        rows: order of its output rows there, `hf_weight = own_weight[rows]`; None where the orders agree.
    """

    key: str
    rows: Tensor | None


# Own name within a block -> Hugging Face's.
HF_LINEARS = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


class Llama(nn.Module):
    """The language model: (B, T) token ids -> (B, T, V) float32 logits of the token after each.

    Args:
        config: its shape.

    Attributes:
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.
        compiled_block: runs a block for a single token; set by `llama.decoding.compile_decoding`.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.compiled_block: Callable[..., Tensor] | None = None
        # Not left to nn.Embedding: drawing on the meta device, where there is nothing to draw, loads torch's compiler.
        self.tok_embeddings = nn.Embedding(
            config.vocab_size, config.dim, _weight=torch.empty(config.vocab_size, config.dim)
        )
        if not self.tok_embeddings.weight.is_meta:
            nn.init.normal_(self.tok_embeddings.weight)
        self.layers = nn.ModuleList(
            Block(config.dim, config.n_heads, config.n_kv_heads, config.hidden_dim, config.norm_eps, layer)
            for layer in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = Linear(config.dim, config.vocab_size)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head share the embedding's weight if the config says so; call it after replacing either."""
        if self.config.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def init_weights(self, generator: torch.Generator | None = None, std: float = 0.02) -> "Llama":
        """Draw fresh weights for pretraining: normal, and for the two projections that write into the residual stream
        narrower by √(2·n_layers), so that its variance does not grow with depth (the scheme of GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                writes_residual = name.endswith(("wo.weight", "w2.weight"))
                width = std / (2 * self.config.n_layers) ** 0.5 if writes_residual else std
                nn.init.normal_(parameter, std=width, generator=generator)
        return self

    def forward(
        self,
        token_ids: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits for the next token at every position.

        Args:
            token_ids: (B, T) int64.
            positions: (T,) or (B, T) int64; by default counted from 0, or from where the cache ends.
            documents: (B, T) int64, packed rows: a token attends only to earlier tokens with its own id. A document's
                tokens stand together; 0, padding, may stand on both sides, and what it computes is of no use. Best
                left in the CPU's memory, whatever the model's device.
            cache: keys and values of earlier tokens; extended in place. Not to be combined with documents.

        Returns:
            (B, T, V) float32.

        Raises:
            ValueError: token_ids is not (B, T), documents are of another shape, combined with a cache, or come back
                after another one.
        """
        return self.logits(self.hidden_states(token_ids, positions=positions, documents=documents, cache=cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """Project final hidden states, (..., C) -> (..., V), and widen to float32 for the softmax to come."""
        return self.output(hidden).float()

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The stream after the final norm, (B, T, C), for callers who want few logits. Arguments as for `forward`."""
        if token_ids.ndim != 2:
            raise ValueError(
                f"token_ids must be (batch, tokens), got shape {tuple(token_ids.shape)}: add a batch dimension"
            )
        if documents is not None and cache is not None:
            raise ValueError("documents and cache exclude each other: decode each document in a row of its own")
        if documents is not None and documents.shape != token_ids.shape:
            raise ValueError(
                f"documents {tuple(documents.shape)}, token_ids {tuple(token_ids.shape)}: each token needs a document"
            )
        if positions is None:
            positions = default_positions(token_ids, cache)
        runs = None if documents is None else Documents.from_ids(documents, token_ids.device)
        mask = attention_mask(token_ids.shape[1], runs, cache)
        rotation = rotary_table(positions, self.config.head_dim, self.config.rope_theta)

        hidden = self.tok_embeddings(token_ids)  # (B, T, C)
        row = None if cache is None else through_blocks(cast(Iterable[Block], self.layers), hidden, rotation, cache)
        hidden = self._block_by_block(hidden, rotation, mask, cache) if row is None else row
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return self.norm(hidden)

    def _block_by_block(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | Documents | None,
        cache: KVCache | None,
    ) -> Tensor:
        one_token = hidden.shape[:2] == (1, 1) and cache is not None and not torch.is_grad_enabled()
        for block in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, rotation, mask, use_reentrant=False)
            elif one_token and self.compiled_block is not None:
                hidden = self.compiled_block(block, hidden, rotation, mask, cache)
            else:
                hidden = block(hidden, rotation, mask, cache)
        return hidden

    def adapter_layout(self) -> dict[str, AdapterSlot]:
        """Each linear module's name -> its name and row order in Hugging Face's LLaMA."""
        rows = hf_linear_rows(self.config)
        layout = {
            f"layers.{i}.{own}": AdapterSlot(f"model.layers.{i}.{foreign}", rows.get(own))
            for i in range(self.config.n_layers)
            for own, foreign in HF_LINEARS.items()
        }
        return layout | {"output": AdapterSlot("lm_head", None)}


def hf_linear_rows(config: LlamaConfig) -> dict[str, Tensor]:
    """Own name within a block -> order of its output rows at Hugging Face's, for those where it differs."""
    return {
        "attention.wq": hf_row_order(config.n_heads, config.head_dim),
        "attention.wk": hf_row_order(config.n_kv_heads, config.head_dim),
    }


def default_positions(token_ids: Tensor, cache: KVCache | None) -> Tensor:
    """Positions counted from 0, or from the cache's end; the first token after left padding has position 0."""
    positions = torch.arange(token_ids.shape[1], device=token_ids.device)
    if cache is None:
        return positions
    positions = positions + cache.length
    if cache.padding is None:
        return positions
    return (positions - cache.padding[:, None]).clamp(min=0)  # (B, T)


def attention_mask(n_tokens: int, documents: Documents | None, cache: KVCache | None) -> Tensor | Documents | None:
    """What T new tokens see, as `Attention` takes it; None where that is plainly causal, which is fastest."""
    if documents is not None or cache is None:
        return documents
    n_keys = cache.length + n_tokens
    if cache.padding is not None:
        return padding_mask(n_tokens, n_keys, cache.padding)
    # A single token sees all that is there, and the first ones see themselves causally: neither needs a mask.
    return None if n_tokens in (1, n_keys) else causal_mask(n_tokens, n_keys, cache.keys.device)
