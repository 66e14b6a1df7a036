"""Contestants against each other: every pair, sides swapped, at several numbers of agents.

A battle is won by the side of which more units live at the end (Ma et al. 2025, section V-A), be that because the
other side is gone or because time is up. In a pursuit nobody dies, and what counts is what the predators earn.

Shapes: E games at once, W ways to stand, P players of a, Q of b, G games of two players standing one way.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from offmarl.atomic import write_json
from offmarl.behaviour.contestants import Contestant
from offmarl.behaviour.games import play
from offmarl.envs.base import EnvSpec
from offmarl.envs.magent import describe
from offmarl.envs.magent_render import renderers
from offmarl.errors import DataError, UsageError
from offmarl.evaluation.statistics import fixed
from offmarl.reporter import Progress, Reporter
from offmarl.stored_json import read_object
from offmarl.streams import stream_seed

TASKS = ("magent_battle", "magent_pursuit")  # with two sides that can both be played
EPSILON = 0.05  # share of random choices: between two fixed policies every battle would be the same
_BLOCK = 1 << 25  # numbers in what all units of all games see at once


@dataclass(frozen=True)
class Rules:
    """Under which games are played."""

    env: str = "magent_battle"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the task, beside the number of agents
    games: int = 40  # of a pair at a size, both sides together; rounded up to as many for every seed and side
    epsilon: float = EPSILON
    seed: int = 0
    device: str = "cpu"

    def spec(self, agents: int) -> EnvSpec:
        """The task where both sides learn. Raises `UsageError` for a task without two sides, or a wrong option."""
        if self.env not in TASKS:
            raise UsageError(f"--env {self.env}: tournaments are played in {' and '.join(TASKS)}")
        for name in ("agents", "background", "opponent"):
            if name in self.options:
                raise UsageError(
                    f"--set env.{name}: a tournament decides that itself (--agents gives the sizes)"
                )
        return describe(self.env, {**self.options, "agents": agents, "background": "none"})


class Pair(BaseModel):
    """What came of the games of two contestants at one size; rates are those of `a`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    a: str
    b: str
    agents: int  # of the first side
    games: int
    win_rate: float | None = None  # None where nothing can be won
    win_interval: tuple[float, float] | None = None  # 95 %, Wilson's, over games
    draw_rate: float | None = None
    loss_rate: float | None = None
    annihilated: float | None = None  # share of games that leave no enemy
    enemies_left: float | None = None  # share of b's units that live at the end
    enemies_left_number: float | None = None  # mean over games
    own_left: float | None = None
    win_rate_by_seed: tuple[tuple[float, ...], ...] | None = None  # of each player of a against each of b
    win_rate_by_side: tuple[float, ...] | None = None  # with a on the first side, on the second
    a_reward: tuple[float | None, float | None]  # mean per agent and step: on the first side, on the second
    b_reward: tuple[float | None, float | None]
    steps: float  # mean length of a game
    a_seeds: tuple[int, ...]
    b_seeds: tuple[int, ...]
    a_trained_on: int | None  # agents; None: never trained
    b_trained_on: int | None
    epsilon: float
    seed: int
    seconds: float

    @property
    def points(self) -> float | None:
        """Of a: wins, and half of the draws."""
        if self.win_rate is None or self.draw_rate is None:
            return None
        return self.win_rate + self.draw_rate / 2


def directions(a: Contestant, b: Contestant, spec: EnvSpec) -> list[bool]:
    """On which sides of `spec` the two can meet: as they stand (False), swapped (True).

    Raises `UsageError` where they cannot at all.
    """
    possible, refusal = [], None
    for swapped in (False,) if a is b else (False, True):
        try:
            for contestant, side in zip((b, a) if swapped else (a, b), renderers(spec).values(), strict=True):
                contestant.require_known(side)
            possible.append(swapped)
        except UsageError as error:
            refusal = refusal or error
    if refusal is not None and not possible:
        raise refusal
    return possible


def play_pair(
    a: Contestant, b: Contestant, agents: int, rules: Rules, on_step: Callable[[], None] | None = None
) -> Pair:
    """Let two contestants meet on either side, every seed with every seed of the other, all games at once.

    Raises `UsageError` where they cannot meet.
    """
    started = time.perf_counter()
    spec = rules.spec(agents)
    ways = directions(a, b, spec)
    meetings = len(ways) * len(a.seeds) * len(b.seeds)
    games = -(-rules.games // meetings)  # of each meeting
    rounds = min(-(-games * meetings * spec.n_agents * spec.obs_dim // _BLOCK), games)
    at_once = -(-games // rounds)
    shape = (len(ways), len(a.seeds), len(b.seeds), at_once)  # W, P, Q, G
    swapped, mine, theirs, _ = torch.cartesian_prod(
        torch.tensor(ways).long(), *(torch.arange(count) for count in shape[1:])
    ).unbind(1)  # [E] each
    who = torch.stack([mine, len(a.seeds) + theirs], 1)  # [E, 2]
    who = torch.where(swapped.unsqueeze(1) == 1, who.flip(1), who).to(rules.device)
    players = [*a.players(rules.epsilon), *b.players(rules.epsilon)]
    alive, reward, steps = [], [], []
    for k in range(rounds):
        seed = stream_seed(rules.seed, "tournament", a.identity, b.identity, agents, k)
        outcome = play(spec, players, who, seed, rules.device, on_step)
        side = torch.stack([swapped, 1 - swapped], 1)  # [E, 2] of a, of b
        alive.append(outcome.alive.cpu().gather(1, side).view(*shape, 2))
        each_step = outcome.episode_return / outcome.steps.unsqueeze(1)
        reward.append(each_step.cpu().gather(1, side).view(*shape, 2))
        steps.append(outcome.steps.cpu())
    own, enemy = torch.cat(alive, 3).unbind(-1)  # [W, P, Q, G] shares of the armies
    own_reward, enemy_reward = (one.mean((1, 2, 3)).tolist() for one in torch.cat(reward, 3).unbind(-1))
    by_side = {way: k for k, way in enumerate(ways)}
    first, second = by_side.get(False), by_side.get(True)
    battle = spec.id == "magent_battle"
    return Pair(
        a=a.name,
        b=b.name,
        agents=agents,
        games=own.numel(),
        **(_outcome(own, enemy, agents) if battle else {}),
        a_reward=tuple(None if way is None else own_reward[way] for way in (first, second)),
        b_reward=tuple(None if way is None else enemy_reward[way] for way in (second, first)),
        steps=_mean(torch.cat(steps)),
        a_seeds=a.seeds,
        b_seeds=b.seeds,
        a_trained_on=a.trained_on,
        b_trained_on=b.trained_on,
        epsilon=rules.epsilon,
        seed=rules.seed,
        seconds=round(time.perf_counter() - started, 2),
    )


def _outcome(own: Tensor, enemy: Tensor, army: int) -> dict[str, Any]:
    """Who won how often, and which share of an `army` was left, of shares [W, P, Q, G]."""
    from scipy.stats import binomtest

    won = own > enemy
    interval = binomtest(int(won.sum()), won.numel()).proportion_ci(confidence_level=0.95, method="wilson")
    return {
        "win_rate": _mean(won),
        "win_interval": (float(interval.low), float(interval.high)),
        "draw_rate": _mean(own == enemy),
        "loss_rate": _mean(own < enemy),
        "annihilated": _mean(enemy == 0),
        "enemies_left": _mean(enemy),
        "enemies_left_number": _mean(enemy) * army,
        "own_left": _mean(own),
        "win_rate_by_seed": won.double().mean((0, 3)).tolist(),
        "win_rate_by_side": won.double().mean((1, 2, 3)).tolist(),
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


@dataclass(frozen=True)
class _Meeting:
    """A pair at one size, and where what came of it lies."""

    a: Contestant
    b: Contestant
    agents: int
    path: Path


def play_tournament(
    contestants: Sequence[Contestant], agents: Sequence[int], rules: Rules, folder: Path, reporter: Reporter
) -> list[Pair]:
    """Play every pair at every number of agents; a pair that lies in `folder` is read and not played again.

    In a pursuit contestants meet themselves too, and two who know the same side only do not meet. Raises
    `UsageError`, before the first game, for fewer than two contestants, the same one or the same name twice, and one
    that can meet nobody.
    """
    names = [contestant.name for contestant in contestants]
    if len(names) < 2:
        raise UsageError("a tournament needs two contestants or more: runs, policy files, random, charge")
    twice = [contestant for contestant in contestants if names.count(contestant.name) > 1]
    if twice:
        name, one = twice[0].name, len({same.identity for same in twice if same.name == twice[0].name}) == 1
        raise UsageError(
            f"{name} is named twice: nobody fights himself"
            if one
            else f"two contestants are called {name}: give one of them another path"
        )
    meetings = [
        meeting for size in sorted(set(agents)) for meeting in _meetings(contestants, size, rules, folder)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"games cannot be written into {folder}: {error.strerror or error}") from error
    pairs = {meeting.path: pair for meeting in meetings if (pair := _stored(meeting.path)) is not None}
    to_do = [meeting for meeting in meetings if meeting.path not in pairs]
    if pairs:
        reporter.say(f"{len(pairs)} of {len(meetings)} pairs were played before: {folder}")
    with reporter.bar("steps of games") as progress:
        most = rules.spec(agents[0]).horizon
        for done, meeting in enumerate(to_do):
            count = _Counter(progress, done * most, most, len(to_do) * most)
            pair = play_pair(meeting.a, meeting.b, meeting.agents, rules, count.step)
            write_json(meeting.path, pair.model_dump(mode="json"))
            pairs[meeting.path] = pair
            reporter.say(_news(pair, len(pairs), len(meetings)))
    return [pairs[meeting.path] for meeting in meetings]


@dataclass
class _Counter:
    """One pair's part of the progress: at most `most` of `total` steps, after `before`."""

    progress: Progress
    before: int
    most: int
    total: int
    done: int = 0

    def step(self) -> None:
        """Count a step of all games."""
        self.done = min(self.done + 1, self.most)
        self.progress(self.before + self.done, self.total)


def _meetings(contestants: Sequence[Contestant], agents: int, rules: Rules, folder: Path) -> list[_Meeting]:
    """The pairs of one size that can meet. Raises `UsageError` where somebody can meet nobody."""
    spec = rules.spec(agents)
    everyone = combinations if rules.env == "magent_battle" else combinations_with_replacement
    found: list[_Meeting] = []
    refusals: dict[str, UsageError] = {}
    for a, b in everyone(contestants, 2):
        try:
            directions(a, b, spec)
        except UsageError as error:
            refusals |= {a.name: error, b.name: error}
            continue
        found.append(_Meeting(a, b, agents, folder / _file_name(a, b, spec, rules)))
    met = {contestant.name for meeting in found for contestant in (meeting.a, meeting.b)}
    for name, refusal in refusals.items():
        if name not in met:
            raise refusal
    return found


def _file_name(a: Contestant, b: Contestant, spec: EnvSpec, rules: Rules) -> str:
    """Readable, and different for whatever is played differently."""
    task = {"env": spec.id, "options": spec.options, "versions": spec.versions}
    played = {"games": rules.games, "epsilon": rules.epsilon, "seed": rules.seed}
    text = json.dumps([a.identity, b.identity, task, played], sort_keys=True)
    readable = re.sub(r"[^A-Za-z0-9.+_-]+", "_", f"{a.name}-{b.name}")[-120:].strip("_-")
    return f"{readable}-{spec.options['agents']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


def _stored(path: Path) -> Pair | None:
    """What a file says; one that cannot be read counts as none."""
    try:
        return Pair.model_validate(read_object(path, "tournament", "pair of a tournament"))
    except (DataError, ValidationError):
        return None


def _news(pair: Pair, done: int, of: int) -> str:
    """One line about a pair that has just been played."""
    if pair.win_rate is None:
        earned = pair.a_reward[0] if pair.a_reward[0] is not None else pair.b_reward[0]
        outcome = f"predators earn {fixed(earned or 0.0, 3)} a step"
    else:
        outcome = f"{pair.win_rate:.0%} won, {pair.draw_rate:.0%} drawn"
    return f"[{done}/{of}] {pair.a} against {pair.b}, {pair.agents} agents: {outcome}; {pair.seconds:.1f} s"
