"""Which snapshot of self-play is the best.

In a battle all play uniform choices, and those that do best there play the rest of a fixed panel: the charge, and the
snapshot at half of the training; sides are swapped. The margin decides, the share of the own army that lives at the end
less that of the enemy's: a few games tell margins apart but not rates of wins, and who holds back keeps a small one. In
other tasks there is nobody to beat and the return decides.
Shapes: E games, G groups of agents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offmarl.behaviour.games import play
from offmarl.behaviour.players import ByChance, Charging, Learned, Player
from offmarl.behaviour.self_play import SelfPlayConfig, Snapshot, revived, training_spec
from offmarl.envs.base import EnvSpec
from offmarl.envs.magent import describe
from offmarl.reporter import Progress
from offmarl.streams import stream_seed


@dataclass(frozen=True)
class Standing:
    """How a snapshot did."""

    step: int
    episode_return: float  # against uniform choices; of the first group, mean over agents and games
    random_win_rate: float | None = (
        None  # against uniform choices; a draw is half a win. None where nobody fights
    )
    enemies_left: float | None = None  # share of the enemies alive at the end of those games
    random_margin: float | None = None  # by which more of the own army live at their end
    margin: float | None = None  # over the whole panel; None of those that did not meet it

    @property
    def rank(self) -> tuple[float, ...]:
        """What orders snapshots."""
        if self.random_margin is None:
            return (self.episode_return,)
        return (float("-inf") if self.margin is None else self.margin, self.random_margin)


def best(table: Sequence[Standing]) -> int:
    """Which snapshot is the expert."""
    return max(range(len(table)), key=lambda k: table[k].rank)


def medium(table: Sequence[Standing], random_return: float) -> int:
    """Which snapshot, not after the expert, is half-way there.

    In a battle half-way from all enemies alive to those that the expert leaves: returns begin with penalties for hits
    that miss, which learners leave off long before they win. In other tasks half-way from `random_return`.
    """
    expert = best(table)

    def distance(k: int) -> float:
        left, of_expert = table[k].enemies_left, table[expert].enemies_left
        if left is None or of_expert is None:
            return abs(table[k].episode_return - (random_return + table[expert].episode_return) / 2)
        return abs(left - (1 + of_expert) / 2)

    return min(range(expert + 1), key=distance)


def standings(
    spec: EnvSpec,
    config: SelfPlayConfig,
    seed: int,
    snapshots: Sequence[Snapshot],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[Standing]:
    """Score every snapshot of self-play on `spec`."""
    trained = training_spec(spec)
    exploration = config.evaluation_exploration
    players: list[Player] = [
        Learned(revived(trained, config, seed, one, device), exploration) for one in snapshots
    ]
    by_chance, charging, half_way = len(players), len(players) + 1, (len(players) - 1) // 2
    players += [ByChance(), Charging()]
    battle = spec.id == "magent_battle"
    arena = trained if battle else first_group_alone(spec)
    total = (2 if battle else 1) * spec.horizon
    played = [0]

    def on_step() -> None:
        played[0] += 1
        if progress is not None:
            progress(played[0], total)

    def meet(pairs: Sequence[tuple[int, int]], name: str) -> Tensor:
        return _meet(
            arena,
            players,
            pairs,
            config.evaluation_episodes,
            stream_seed(seed, "panel", name),
            device,
            on_step,
        )

    first = meet([(k, by_chance) for k in range(len(snapshots))], "first")
    table = [
        Standing(one.step, earned, *(of_battle if battle else ()))
        for one, (earned, *of_battle) in zip(snapshots, first.tolist(), strict=True)
    ]
    if battle:
        finalists = sorted(range(len(table)), key=lambda k: table[k].rank, reverse=True)[: config.finalists]
        pairs = [(k, other) for k in finalists for other in (charging, half_way) if other != k]
        margins = dict(zip(pairs, meet(pairs, "second")[:, -1].tolist(), strict=True))
        for k in finalists:
            own = [float(first[k, -1]), *(margin for (one, _), margin in margins.items() if one == k)]
            table[k] = replace(table[k], margin=sum(own) / len(own))
    return table


def _meet(
    arena: EnvSpec,
    players: Sequence[Player],
    pairs: Sequence[tuple[int, int]],
    games: int,
    seed: int,
    device: torch.device | str,
    on_step: Callable[[], None],
) -> Tensor:
    """Play each pair's `games`, sides swapped: [pairs, 4] the first one's return, wins, enemies left and margin."""
    groups = len(arena.groups)
    side = (torch.arange(games) % groups).repeat(len(pairs))  # [E] of the first
    who = torch.tensor(pairs).repeat_interleave(games, 0)[:, :groups]
    who = torch.where(side.unsqueeze(1) == 1, who.flip(1), who)
    outcome = play(arena, players, who.to(device), seed, device, on_step)
    earned = _of(side, outcome.episode_return)
    own, enemies = _of(side, outcome.alive), _of(1 - side if groups == 2 else side, outcome.alive)
    won = (own > enemies).float() + 0.5 * (own == enemies).float()
    return torch.stack([earned, won, enemies, own - enemies], 1).unflatten(0, (len(pairs), games)).mean(1)


def _of(side: Tensor, values: Tensor) -> Tensor:
    """[E, G] -> [E], each game's own side."""
    return values.cpu().gather(1, side.unsqueeze(1)).squeeze(1)


def first_group_alone(spec: EnvSpec) -> EnvSpec:
    """The same task with everybody else in the background, at random."""
    if len(spec.groups) == 1:
        return describe(spec.id, {**spec.options, "opponent": "random"}) if spec.background else spec
    return describe(spec.id, {**spec.options, "background": "prey", "opponent": "random"})
