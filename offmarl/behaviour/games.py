"""Whole games of a rendered task between any players, many at once, and what is left at their end.

Shapes: E games, G groups of agents, N agents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.behaviour.players import Player, joint_choice
from offmarl.envs.base import EnvSpec
from offmarl.envs.magent import make_magent
from offmarl.envs.magent_render import renderers
from offmarl.streams import stream, stream_seed


@dataclass(frozen=True)
class Outcome:
    """How E games ended."""

    episode_return: Tensor  # [E, G] sum of an episode's rewards, mean over the group's agents
    alive: Tensor  # [E, G] share of each group that lives at the end
    steps: Tensor  # [E] int64


@torch.no_grad()
def play(
    spec: EnvSpec,
    players: Sequence[Player],
    who: Tensor,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[], None] | None = None,
) -> Outcome:
    """Play a game in each of E = `len(who)` copies of `spec`; `players[who[e, g]]` plays its group g.

    The same seed gives the same games.
    """
    known = list(renderers(spec).values())
    generator = stream(seed, "games", "choices", device=device)
    sizes = [renderer.slots.stop - renderer.slots.start for renderer in known]
    with make_magent(spec.id, len(who), spec.options, device, views=False) as env:
        frame = env.reset(stream_seed(seed, "games", "reset"))
        running = torch.ones(len(who), dtype=torch.bool, device=env.device)  # [E]
        episode_return = torch.zeros(len(who), len(known), device=env.device)
        alive = torch.zeros_like(episode_return)
        steps = torch.zeros(len(who), dtype=torch.int64, device=env.device)
        while bool(running.any()):
            assert frame.state is not None
            playing = who.masked_fill(~running.unsqueeze(1), -1)
            step = env.step(joint_choice(players, playing, frame.state, known, generator))
            assert step.agent_reward is not None
            episode_return += _group_means(step.agent_reward, sizes) * running.unsqueeze(1)
            steps += running
            ended = running & step.done
            assert step.successor.alive is not None
            alive[ended] = _group_means(step.successor.alive.float(), sizes)[ended]
            running &= ~step.done
            frame = step.frame
            if on_step is not None:
                on_step()
    return Outcome(episode_return, alive, steps)


def _group_means(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """[E, N] -> [E, G]."""
    return torch.stack([part.mean(1) for part in values.split(list(sizes), 1)], 1)
