"""How far a dataset moves each agent's variables by themselves, whatever is made of it later.

Shapes: n fitted and H held-out transitions, N agents, V variables that vary, A action variables of an agent,
F features.
"""

import torch
from torch import Tensor

from offmarl.credit.samples import Samples
from offmarl.streams import stream

MOST_ROWS = 10_000  # transitions looked at; shares of variance need no more
FEATURES = 256  # random ReLU features of what an agent sees
RIDGE = 1e-3  # variance of a noise added to standardised variables: keeps redundant ones solvable


def exploration(samples: Samples, action: Tensor, successor: Tensor, seed: int) -> list[float]:
    """Share of the variance of each agent's actions that what it saw does not explain, [N].

    0 is a fixed rule that the fit found (or a single action): what the agent did and what it saw then cannot be
    told apart. 1 is chance, or many different rules mixed. `action` and `successor` [V] bool say what a variable
    is. Ridge regression on the variables and on random features of them, judged on held-out transitions.
    """
    seen, tested = samples.inputs[:MOST_ROWS], samples.heldout_inputs[:MOST_ROWS]
    if len(samples.inputs) > MOST_ROWS:
        seen = samples.inputs[:: len(samples.inputs) // MOST_ROWS]
    raw = samples.scale.input_std  # variance counts in the actions' own units: rare choices weigh little
    sees = (samples.own | samples.shared) & ~(action | successor)  # [N, V]
    generator = stream(seed, "coverage", "features")
    shares = []
    for own, situation in zip(samples.own & action, sees, strict=True):
        target, held = (part[:, own] * raw[own] for part in (seen, tested))  # [n, A], [H, A]
        total = (held - held.mean(0)).double().square().mean(0).sum()  # 0 without an action that varies
        if total == 0:
            shares.append(0.0)
            continue
        width = int(situation.sum())
        mixing = torch.randn(width, FEATURES, generator=generator).to(seen.device) / max(1, width) ** 0.5
        offset = torch.randn(FEATURES, generator=generator).to(seen.device)
        known, asked = (_features(part[:, situation], mixing, offset) for part in (seen, tested))  # [n, F]
        weight = RIDGE * len(known) * torch.eye(known.shape[1], device=known.device, dtype=known.dtype)
        mean = target.double().mean(0)
        solution = torch.linalg.solve(known.T @ known + weight, known.T @ (target.double() - mean))
        error = (held.double() - mean - asked @ solution).square().mean(0).sum()
        shares.append(min(1.0, float(error / total)))
    return shares


def _features(situation: Tensor, mixing: Tensor, offset: Tensor) -> Tensor:
    """The situation itself and ReLU features of it, with a constant: [n, F]."""
    constant = torch.ones(len(situation), 1, device=situation.device)
    return torch.cat([constant, situation, torch.relu(situation @ mixing + offset)], 1).double()


def overlap(samples: Samples, edges: Tensor) -> list[float]:
    """How well each agent's causes can be told from variables that are not its own, [N]: mean linear R².

    0: the data moves them by themselves. Near 1: the others see the same things (relative positions, say), so
    that a reward could be written with their variables just as well, and only the preference for own variables
    decides whose it is. `edges` [N, V] bool says what counts as a cause; all own variables where none does.
    """
    inputs = samples.inputs[:: max(1, len(samples.inputs) // MOST_ROWS)].double()
    inputs = inputs - inputs.mean(0)
    variance = inputs.square().mean(0)
    covariance = inputs.T @ inputs / len(inputs)
    # The inverse of a block of the inverse is that block's covariance given everything else.
    covariance.diagonal().add_(RIDGE)
    precision = torch.linalg.inv(covariance)
    shares = []
    for own, used in zip(samples.own, samples.own & edges, strict=True):
        if not own.any():
            shares.append(1.0)
            continue
        left = torch.linalg.inv(precision[own][:, own]).diagonal() - RIDGE  # [own] variance given the others
        explained = 1 - left / variance[own].clamp(min=RIDGE)
        counts = used[own] if used.any() else torch.ones_like(used[own])
        shares.append(float(explained[counts].clamp(0, 1).mean()))
    return shares
