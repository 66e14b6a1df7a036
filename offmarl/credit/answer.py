"""What a decomposer answers, looked over before anything is written: a class of the user's may say anything.

Shapes: R dataset rows, N agents, V variables of a transition, H held-out rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from offmarl.credit.base import AgentVerdict, Credit
from offmarl.data.table import Transitions
from offmarl.errors import UsageError

UNSAID = "the method does not say"  # a verdict
Refuse = Callable[[str], UsageError]


def checked(credit: object, transitions: Transitions, method: str) -> Credit:
    """The same answer with plain tensors and numbers in the shapes that `Credit` promises.

    Figures that could not be computed become None, and agents about whom nothing is said get a verdict that says so.
    Raises `UsageError` naming the method, the field, what it holds and what was expected.
    """

    def refuse(problem: str) -> UsageError:
        return UsageError(f"the method '{method}' gave no answer that can be used: {problem}")

    def array(name: str, values: object, shape: tuple[int, ...], expected: str) -> Tensor:
        try:
            tensor = torch.as_tensor(values).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise refuse(f"{name} is a {type(values).__name__}, expected a tensor {expected}") from error
        found = tuple(tensor.shape)
        if len(found) != len(shape) or any(a not in (-1, b) for a, b in zip(shape, found, strict=True)):
            raise refuse(f"{name} has the shape {list(found)}, expected {expected}")
        if not bool(tensor.isfinite().all()):
            raise refuse(f"{name} holds values that are not finite")
        return tensor

    if not isinstance(credit, Credit):
        raise refuse(f"assign returned a {type(credit).__name__}, expected a {Credit.__module__}.Credit")
    N, V = transitions.spec.n_agents, len(credit.input_names)
    rows = len(transitions.row), N
    of_rows = f"[R, N] = {list(rows)}"
    reward = array("reward", credit.reward, rows, of_rows).float()
    acts = torch.zeros(len(reward), dtype=torch.bool)
    acts[transitions.transition_rows.cpu()] = True
    if paid := (reward[~acts] != 0).any(1).nonzero().flatten().tolist():
        row = int((~acts).nonzero().flatten()[paid[0]])
        raise refuse(f"reward is {reward[row].tolist()} in row {row}, the last of an episode: it must be 0")
    heldout = credit.heldout_rows
    if heldout is not None:
        heldout = array("heldout_rows", heldout, (-1,), "[H]").long()
        if not len(heldout) or int(heldout.min()) < 0 or int(heldout.max()) >= len(acts):
            raise refuse(
                f"heldout_rows are to be some of the rows 0 to {len(acts) - 1}; None where none were"
            )
        if not bool(acts[heldout].all()):
            raise refuse("heldout_rows name last rows of episodes, where nobody acts")

    def of_variables(name: str, values: object, *shape: int) -> Tensor | None:
        expected = f"[{'N, ' * (len(shape) > 1)}V] = {list(shape)}, V the number of input_names"
        return None if values is None else array(name, values, shape, expected)

    masks = of_variables("masks", credit.masks, N, V)
    shared_parents = of_variables("shared_parents", credit.shared_parents, V)
    return replace(
        credit,
        reward=reward,
        std=None if credit.std is None else array("std", credit.std, rows, of_rows),
        masks=None if masks is None else masks.bool(),
        edge_probability=of_variables("edge_probability", credit.edge_probability, N, V),
        shared_parents=None if shared_parents is None else shared_parents.bool(),
        input_names=tuple(map(str, credit.input_names)),
        heldout_rows=heldout,
        metrics=_numbers(credit.metrics, refuse),
        agents=_verdicts(credit.agents, transitions.spec.agents, refuse),
    )


def _verdicts(given: Any, names: tuple[str, ...], refuse: Refuse) -> list[AgentVerdict]:
    if not given:
        return [AgentVerdict(name, UNSAID) for name in names]
    fit = isinstance(given, list) and all(isinstance(agent, AgentVerdict) for agent in given)
    if not fit or [agent.name for agent in given] != list(names):
        raise refuse(
            f"agents are to be a list of an AgentVerdict for each of {', '.join(names)}, in this order"
        )
    told = [asdict(agent) for agent in given]
    return [
        AgentVerdict(about.pop("name"), str(about.pop("verdict")), **_numbers(about, refuse))
        for about in told
    ]


def _numbers(figures: Mapping[str, object], refuse: Refuse) -> dict[str, float | None]:
    """Plain numbers, None for those that are none: NaN and infinity cannot be written down."""
    found: dict[str, float | None] = {}
    for name, value in figures.items():
        try:
            number = None if value is None else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise refuse(f"{name} is {value!r}, expected a number or None") from error
        found[name] = number if number is not None and math.isfinite(number) else None
    return found
