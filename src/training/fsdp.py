"""Full fine-tuning in shares: FSDP2 (arXiv 2304.11277) around our loss. Imported only where it is used."""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from data import Batch
from llama import Llama
from training.loss import causal_lm_loss
from training.parallel import Engine
from training.team import Team


class Sharded(Engine):
    """Every parameter cut by rows over the ranks; a block's are gathered when it runs, its gradients summed and cut.

    Args:
        model: its parameters become DTensors, in place; on the meta device they take no memory until they are filled.
        gathered_dtype: what a block's weights are gathered in: bfloat16 halves the traffic under bf16-mixed. Gradients
            are always summed in float32; embedding, last norm and head are gathered as they are.
    """

    sharded = True

    def __init__(
        self, model: Llama, team: Team, device: torch.device, *, gathered_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(model, team)
        mesh = init_device_mesh(device.type, (team.size,))
        policy = partial(MixedPrecisionPolicy, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in model.layers:
            fully_shard(block, mesh=mesh, mp_policy=policy(param_dtype=gathered_dtype))
        self._root: nn.Module = _Loss(model)
        fully_shard(self._root, mesh=mesh, mp_policy=policy())
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a sum: the loss is scaled by the whole step's tokens
                module.set_force_sum_reduction_for_comms(True)  # and one that gloo can do

    def loss(self, batch: Batch, scale: float = 1.0) -> Tensor:
        loss = self._root(batch, scale)
        if not torch.is_grad_enabled():
            # after a backward pass FSDP does it; without one the root would stay whole
            cast(FSDPModule, self._root).reshard()
        return loss

    def take_memory(self, device: torch.device) -> None:
        """Give an empty model's parameters memory for this rank's rows, on a device; what is in it is undefined."""
        self._root.to_empty(device=device)
        self.model.tie_weights()


class _Loss(nn.Module):
    """`causal_lm_loss` as a module: FSDP acts around forward(), and the loss uses the head, too."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, scale: float = 1.0) -> Tensor:
        return causal_lm_loss(self.model, batch, scale=scale)
