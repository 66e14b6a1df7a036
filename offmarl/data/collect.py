"""An environment and a policy make a dataset.

Shapes: E copies of the environment, T time, N agents, R rows.
"""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from offmarl.data.writer import Writer
from offmarl.envs.base import Environment, EnvSpec, Frame, KnownPolicy, Policy, Step
from offmarl.errors import DataError, UsageError
from offmarl.streams import stream, stream_seed

Progress = Callable[[int, int], None]


def collect(
    env: Environment,
    policy: Policy,
    writer: Writer,
    transitions: int,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Let `policy` act in `env` until `writer` holds whole episodes of at least `transitions` transitions.

    Data comes in waves: every copy plays one episode from a state that depends on `seed` and on the number of
    the wave alone. So a resumed writer goes on where it was, and the dataset is the same as without the
    interruption. The last wave is trimmed in the order of the copies, which favours no length of episode.
    `progress(done, transitions)` is called after every wave.

    Raises `UsageError` where `writer` was begun for another task or with other settings, `DataError` where an
    episode does not end.
    """
    if writer.spec != env.spec:
        raise UsageError(
            f"the writer stores data of {writer.spec.id}, with other options than this environment"
        )
    if transitions < 1:
        raise UsageError(f"transitions={transitions}: collect at least one")
    writer.bind(seed=seed, transitions=transitions, num_envs=env.num_envs)
    while writer.transitions < transitions:
        arrays, length, annotations = _wave(env, policy, seed, writer.waves)
        enough = torch.cumsum(length - 1, 0) >= transitions - writer.transitions
        keep = int(enough.nonzero()[0]) + 1 if bool(enough.any()) else len(length)
        rows = int(length[:keep].sum())
        writer.append(
            {name: values[:rows] for name, values in arrays.items()},
            length[:keep],
            {name: values[:keep] for name, values in annotations.items()},
            waves=1,
        )
        if progress is not None:
            progress(min(writer.transitions, transitions), transitions)


def _wave(
    env: Environment, policy: Policy, seed: int, wave: int
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Play one episode in every copy: rows [R, ...] copy after copy, rows of each [E], annotations."""
    copies, device = env.num_envs, env.device
    generator = stream(seed, "policy", wave, device=device)
    frame = env.reset(stream_seed(seed, "wave", wave))
    policy.begin(torch.ones(copies, dtype=torch.bool, device=device), generator)
    frames = [frame_arrays(frame, env.spec)]
    steps: list[dict[str, Tensor]] = []
    running = torch.ones(copies, dtype=torch.bool, device=device)
    length = torch.zeros(copies, dtype=torch.int64, device=device)
    annotations: dict[str, Tensor] = {}
    while bool(running.any()):
        if len(steps) > env.spec.horizon:
            copy = int(running.nonzero()[0])
            raise DataError(
                f"{env.spec.id}: copy {copy} did not end within its horizon of {env.spec.horizon} steps"
            )
        action = policy.act(frame, generator)
        likely = policy.probability() if isinstance(policy, KnownPolicy) else None
        step = env.step(action)
        # In a copy that goes on, the successor is the next frame; in one that ended, it is the final row.
        frames.append(frame_arrays(step.successor, env.spec))
        steps.append(step_arrays(frame, action, step, env.spec, likely))
        ended = running & step.done
        length += running
        for name, values in policy.annotations().items():
            if name not in annotations:
                annotations[name] = torch.zeros_like(values)
            annotations[name][ended] = values[ended]
        running &= ~ended
        policy.begin(step.done, generator)
        frame = step.frame
    inside = torch.arange(len(frames), device=device) <= length[:, None]  # [E, T + 1]
    acting = inside.clone()
    acting[torch.arange(copies, device=device), length] = False
    arrays = {name: _rows([entry[name] for entry in frames], inside) for name in frames[0]}
    for name, first in steps[0].items():
        taken = [*(entry[name] for entry in steps), torch.zeros_like(first)]
        values = torch.stack(taken, dim=1)  # [E, T + 1, ...]
        values[~acting] = 0  # the last row of an episode, and what a copy did after its end
        arrays[name] = values[inside].cpu()
    return arrays, (length + 1).cpu(), {name: values.cpu() for name, values in annotations.items()}


def frame_arrays(frame: Frame, spec: EnvSpec) -> dict[str, Tensor]:
    """Copy what a frame shows and a dataset of `spec` stores: simulators reuse their buffers."""
    present = {field.name: getattr(frame, field.name) for field in fields(frame)}
    if spec.rendered:
        present["obs"] = present["position"] = None
    return {name: _stored(values) for name, values in present.items() if values is not None}


def step_arrays(
    frame: Frame, action: Tensor, step: Step, spec: EnvSpec, likely: Tensor | None = None
) -> dict[str, Tensor]:
    """Copy what acting on `frame` led to, and how `likely` [E, N] the choices were, where somebody knows."""
    if spec.rendered and frame.alive is not None:
        action = action * frame.alive  # what the dead were told to do means nothing, and does not compress
    arrays = {
        "action": _stored(action),
        "team_reward": _stored(step.team_reward),
        "terminated": _stored(step.terminated),
        "truncated": _stored(step.truncated),
    }
    if likely is not None and not spec.rendered:
        arrays["behaviour_probability"] = _stored(likely)
    if spec.has_agent_reward and step.agent_reward is not None:
        arrays["agent_reward"] = _stored(step.agent_reward)
    return arrays


def _stored(values: Tensor) -> Tensor:
    if values.dtype == torch.bool:
        return values.to(torch.uint8)
    return values.to(torch.float32, copy=True) if values.is_floating_point() else values.clone()


def _rows(entries: list[Tensor], inside: Tensor) -> Tensor:
    """Cut the rows [R, ...] of every episode out of T + 1 entries [E, ...]."""
    return torch.stack(entries, dim=1)[inside].cpu()
