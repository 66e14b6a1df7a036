"""Which discrete choices an agent has."""

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec


def choices(spec: EnvSpec, device: torch.device) -> Tensor | None:
    """[N, K] bool: the choices each agent ever has; None where all agents have all of them."""
    counts = torch.tensor([len(names) for names in spec.action_names], device=device)
    if bool((counts == spec.action_dim).all()):
        return None
    return torch.arange(spec.action_dim, device=device) < counts.unsqueeze(1)


def allowed(legal: Tensor | None, existing: Tensor | None) -> Tensor | None:
    """[..., N, K] bool: what is `legal` [..., N, K] and among `existing` [N, K]; None: everything."""
    if legal is None or existing is None:
        return existing if legal is None else legal
    return legal & existing


def mask_illegal(values: Tensor, legal: Tensor | None, existing: Tensor | None) -> Tensor:
    """Put the lowest finite number where a choice is not `legal` [..., N, K] or not among `existing`.

    `values` is [..., N, K]. Finite, so that its gradient and its product with zero stay numbers.
    """
    permitted = allowed(legal, existing)
    if permitted is None:
        return values
    return values.masked_fill(~permitted, torch.finfo(values.dtype).min)
