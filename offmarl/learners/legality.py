"""Which discrete choices an agent has."""

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec


def choices(spec: EnvSpec, device: torch.device) -> Tensor | None:
    """[N, 1, K] bool: the choices each agent ever has; None where all agents have all of them."""
    counts = torch.tensor([len(names) for names in spec.action_names], device=device)
    if bool((counts == spec.action_dim).all()):
        return None
    return (torch.arange(spec.action_dim, device=device) < counts.unsqueeze(1)).unsqueeze(1)


def mask_illegal(values: Tensor, legal: Tensor | None, existing: Tensor | None) -> Tensor:
    """Put the lowest finite number where a choice is not `legal` [S, B, N, K] or not among `existing`.

    `values` is [S, N, B, K]. Finite, so that its gradient and its product with zero stay numbers.
    """
    allowed = existing
    if legal is not None:
        allowed = legal.transpose(1, 2) if existing is None else legal.transpose(1, 2) & existing
    if allowed is None:
        return values
    return values.masked_fill(~allowed, torch.finfo(values.dtype).min)
