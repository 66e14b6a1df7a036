"""Which task does a foreign dataset come from: one that offmarl knows, or one described by the arrays alone?

Shapes: N agents, O observation, A action dimensions, K discrete choices, D state.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from offmarl.data.formats.base import Contents, Source
from offmarl.envs.base import EnvSpec
from offmarl.envs.registry import default_options, listing, make
from offmarl.errors import DataError, OffmarlError, UsageError


def known_task(env: str, options: Mapping[str, Any]) -> EnvSpec | None:
    """The spec of an environment of offmarl, or None for one that is unknown or cannot be built here.

    Raises `UsageError` for options of a task that is not known, or that it does not have.
    """
    entry = {entry.id: entry for entry in listing()}.get(env)
    if entry is None:
        if options:
            raise UsageError(
                f"'{env}' is no environment of offmarl: --set env.{next(iter(options))} has no meaning"
            )
        return None
    try:
        with make(env, 1, options=options) as environment:
            return environment.spec
    except OffmarlError:
        if entry.needs is None or options:
            raise
        return None  # its simulator is not installed, which data can do without


def resolve_task(env: str, known: EnvSpec | None, options: Mapping[str, Any], source: Source) -> EnvSpec:
    """The spec to store: `known` where the dataset has its dimensions, else one made of the arrays.

    Adds a note to the source's where something has to be said. Raises `DataError` naming the array, its shape and
    what the environment has instead.
    """
    contents = source.contents
    if known is None:
        names = [entry.id for entry in listing()]
        near = get_close_matches(env, names, n=1, cutoff=0.7)
        why = (
            f"the simulator of {env} is not installed here"
            if env in names
            else f"'{env}' is no environment of offmarl" + (f" (did you mean {near[0]}?)" if near else "")
        )
        contents.notes.append(f"{why}: the task is described by the arrays")
        return described_task(env, contents)
    if contents.discrete != known.discrete and "actions" in default_options(env) and "actions" not in options:
        other = {**options, "actions": "discrete" if contents.discrete else "force"}
        known = known_task(env, other) or known
    check_dimensions(known, source)
    if contents.state_dim and not known.state_dim:
        invented = tuple(f"s{i}" for i in range(contents.state_dim))
        contents.notes.append(
            f"{env} has no state: the dataset's is kept under the names s0 to {invented[-1]}"
        )
        known = known.model_copy(update={"state_names": invented})
    return known


def described_task(env: str, contents: Contents) -> EnvSpec:
    """A spec made of what the arrays show; agents of equal widths form a group.

    Raises `UsageError` for a horizon shorter than an episode.
    """
    longest = int(contents.steps.max())
    horizon = contents.horizon or longest
    if horizon < longest:
        raise UsageError(
            f"--horizon {horizon}: episode {int(contents.steps.argmax())} has {longest} steps: --horizon {longest}, "
            "or leave it out"
        )
    agents = contents.agents or tuple(f"agent_{i}" for i in range(contents.n_agents))
    groups: dict[tuple[int, int], list[str]] = {}
    widths = list(zip(contents.obs_widths, contents.action_widths, strict=True))
    for agent, size in zip(agents, widths, strict=True):
        groups.setdefault(size, []).append(agent)
    letter = "choice_" if contents.discrete else "a"
    return EnvSpec(
        id=env,
        agents=agents,
        groups=tuple(tuple(group) for group in groups.values()),
        action_type="discrete" if contents.discrete else "continuous",
        obs_names=tuple(tuple(f"o{i}" for i in range(width)) for width in contents.obs_widths),
        action_names=tuple(tuple(f"{letter}{i}" for i in range(width)) for width in contents.action_widths),
        state_names=tuple(f"s{i}" for i in range(contents.state_dim)),
        horizon=horizon,
        # Copies of the team's reward say nothing of who earned it; equal rewards of the agents' own do.
        shared_reward=contents.shared_reward and contents.has_agent_reward,
        has_agent_reward=contents.has_agent_reward,
    )


def check_dimensions(spec: EnvSpec, source: Source) -> None:
    """Raise `DataError` where a dataset cannot come from `spec`."""
    contents, env = source.contents, spec.id

    def refuse(found: str, expected: str) -> None:
        raise DataError(f"{source.path}: {found}, {env} has {expected}")

    if contents.n_agents != spec.n_agents:
        refuse(f"{source.shown('obs', 0)}: {contents.n_agents} agents", f"{spec.n_agents}")
    if contents.discrete != spec.discrete:
        kind = "discrete" if contents.discrete else "continuous"
        refuse(f"{source.shown('action', 0)}: {kind} actions", f"{spec.action_type} ones")
    for agent, name in enumerate(spec.agents):
        # A padded format does not tell the widths of an agent that is narrower than the widest.
        width, choices = len(spec.obs_names[agent]), len(spec.action_names[agent])
        widest = (spec.obs_dim, spec.action_dim) if contents.padded else (width, choices)
        if contents.obs_widths[agent] not in (width, widest[0]):
            refuse(source.shown("obs", agent), f"observations of {width} numbers ({name})")
        found = contents.action_widths[agent]
        only_taken = contents.discrete and not contents.has_legal and found <= choices
        if found not in (choices, widest[1]) and not only_taken:
            what = "choices" if spec.discrete else "dimensions"
            refuse(source.shown("action", agent), f"actions of {choices} {what} ({name})")
    if contents.state_dim and spec.state_dim and contents.state_dim != spec.state_dim:
        refuse(source.shown("state", 0), f"a state of {spec.state_dim} numbers")
    longest = int(contents.steps.max())
    if longest > spec.horizon:
        episode = int(contents.steps.argmax())
        refuse(
            f"episode {episode} has {longest} steps",
            f"a horizon of {spec.horizon} (another: --set env.horizon={longest})",
        )
