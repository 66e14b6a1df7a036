"""Learners by name."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from offmarl.envs.base import EnvSpec
from offmarl.errors import UsageError, unknown_name
from offmarl.learners.base import Learner
from offmarl.settings import configure

LEARNERS: dict[str, dict[str, str]] = {
    "bc": {"continuous": "offmarl.learners.bc:BC", "discrete": "offmarl.learners.bc:DiscreteBC"},
    "td3bc": {"continuous": "offmarl.learners.td3bc:TD3BC"},
    "cql": {"continuous": "offmarl.learners.cql:CQL", "discrete": "offmarl.learners.cql:DiscreteCQL"},
    "iql": {"continuous": "offmarl.learners.iql:IQL", "discrete": "offmarl.learners.iql:DiscreteIQL"},
    "omar": {
        "continuous": "offmarl.learners.omar:OMAR",
        "discrete": "offmarl.learners.omar_discrete:DiscreteOMAR",
    },
    "cfcql": {
        "continuous": "offmarl.learners.cfcql:CFCQL",
        "discrete": "offmarl.learners.cfcql_discrete:DiscreteCFCQL",
    },
    "qmix_cql": {"discrete": "offmarl.learners.qmix_cql:QMIXCQL"},
    "icq": {
        "continuous": "offmarl.learners.icq:ICQ",
        "discrete": "offmarl.learners.icq_discrete:DiscreteICQ",
    },
}


def learner_class(name: str, action_type: str) -> type[Learner]:
    """Import the class behind `name` for "continuous" or "discrete" actions.

    `d3rlpy:NAME` is any algorithm of d3rlpy. Raises `UsageError` for an unknown name, or a learner without that
    kind of action.
    """
    if name.startswith("d3rlpy:"):
        from offmarl.learners.d3rlpy import d3rlpy_learner  # an optional dependency

        return d3rlpy_learner(name, action_type)
    if name not in LEARNERS:
        raise unknown_name("learner", name, LEARNERS)
    if action_type not in LEARNERS[name]:
        fitting = ", ".join(sorted(known for known, kinds in LEARNERS.items() if action_type in kinds))
        raise UsageError(
            f"learner '{name}' has no {action_type} actions, which this dataset has; those that do: {fitting}"
        )
    module, _, attribute = LEARNERS[name][action_type].partition(":")
    found: type[Learner] = getattr(import_module(module), attribute)
    return found


def make_learner(
    name: str,
    spec: EnvSpec,
    values: dict[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    device: torch.device | str = "cpu",
) -> Learner:
    """Build the learner `name` for a task, with `values` over its defaults.

    Raises `UsageError` for an unknown name or setting, a value out of range, or the wrong kind of action.
    """
    chosen = learner_class(name, spec.action_type)
    return chosen(spec, configure(chosen.config_class, values or {}, "learner"), seeds, device)
