"""Learners by name."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from offmarl.envs.base import EnvSpec
from offmarl.errors import UsageError, unknown_name
from offmarl.learners.base import Learner, ObservingLearner
from offmarl.own_code import own_class
from offmarl.settings import configure

# "rendered": tasks of which data holds states, and what is seen of them is rendered.
LEARNERS: dict[str, dict[str, str]] = {
    "bc": {
        "continuous": "offmarl.learners.bc:BC",
        "discrete": "offmarl.learners.bc:DiscreteBC",
        "rendered": "offmarl.learners.meanfield.bc:UnitBC",
    },
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
    "idqn": {"rendered": "offmarl.learners.meanfield.idqn:IDQN"},
    "mfq": {"rendered": "offmarl.learners.meanfield.mfq:MFQ"},
    "attention_mfq": {"rendered": "offmarl.learners.meanfield.attention_mfq:AttentionMFQ"},
    "random_mfq": {"rendered": "offmarl.learners.meanfield.random_mfq:RandomMFQ"},
    "cmfq": {"rendered": "offmarl.learners.meanfield.cmfq:CMFQ"},
}


def task_kind(spec: EnvSpec) -> str:
    """What decides which class of a learner fits: "continuous" or "discrete" actions, or "rendered" views."""
    return "rendered" if spec.rendered else spec.action_type


def learner_class(name: str, kind: str) -> type[Learner]:
    """Import the class behind `name` for a kind of task: "continuous" or "discrete" actions, or "rendered" views.

    Where views are rendered, a learner that cannot render takes the table of observations and its class for choices.
    `d3rlpy:NAME` is any algorithm of d3rlpy, `module:Class` a class of one's own. Raises `UsageError`
    for an unknown name, or a learner that does not fit.
    """
    action_type = "discrete" if kind == "rendered" else kind
    if name.startswith("d3rlpy:"):
        from offmarl.learners.d3rlpy import d3rlpy_learner  # an optional dependency

        return d3rlpy_learner(name, action_type)
    if ":" in name:
        own = own_class("learner", name, ObservingLearner)  # type: ignore[type-abstract]
        if own.action_type != action_type:
            raise UsageError(
                f"learner '{name}' is for {own.action_type} actions, this dataset's are {action_type}"
            )
        return own
    if name not in LEARNERS:
        raise unknown_name("learner", name, LEARNERS)
    fitting = LEARNERS[name]
    path = fitting.get(kind) or fitting.get(action_type)
    if path is None:
        others = ", ".join(
            sorted(known for known, kinds in LEARNERS.items() if kind in kinds or action_type in kinds)
        )
        lacking = f"has no {action_type} actions, which this dataset has"
        if list(fitting) == ["rendered"]:
            lacking = "learns of battles and other tasks of MAgent, whose views it renders, and this dataset has none"
        raise UsageError(f"learner '{name}' {lacking}; those that do: {others}")
    module, _, attribute = path.partition(":")
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
    chosen = learner_class(name, task_kind(spec))
    return chosen(spec, configure(chosen.config_class, values or {}, "learner"), seeds, device)
