"""One episode as a viewer shows it: the world frame by frame, and beside it who was paid what at each step.

Shapes: T steps (T + 1 frames), N agents, M bodies, E copies, R dataset rows.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from offmarl.credit.relabel import CreditReport
from offmarl.data.store import Dataset
from offmarl.envs.base import Environment, EnvSpec, Frame, Step
from offmarl.envs.pettingzoo import PettingZooEnvironment
from offmarl.errors import OffmarlError, UsageError
from offmarl.evaluation.rollout import task_of
from offmarl.learners.base import Learner
from offmarl.report.neighbours import NeighbourWeights, around, neighbour_weights, require_weights
from offmarl.report.scene import Scene, scene_of
from offmarl.streams import stream, stream_seed
from offmarl.training.run import RunFolder, load_policy

MOST_STEPS = 500  # of an episode that are shown


@dataclass(frozen=True)
class ShownEpisode:
    """What is drawn of an episode."""

    title: str
    source: str  # the dataset or the run
    agents: tuple[str, ...]
    scene: Scene | None  # None where no positions are known
    team_reward: np.ndarray  # [T]
    reward: np.ndarray  # [T, N] what each agent is said to have earned
    reward_name: str  # who says so
    std: np.ndarray | None = None  # [T, N] of `reward`
    truth: np.ndarray | None = None  # [T, N]
    pictures: np.ndarray | None = None  # [T + 1, H, W, 3] uint8, where the task draws itself
    note: str = ""
    weights: NeighbourWeights | None = None  # of one agent, which the scene is around

    @property
    def steps(self) -> int:
        """T."""
        return len(self.team_reward)


def stored_episode(
    dataset: Dataset, number: int, report: CreditReport | None = None, what: str = ""
) -> ShownEpisode:
    """Episode `number` of a dataset, with the rewards of `report`: else the true ones, else R/N.

    `what` says in the title why it is shown. Raises `UsageError` for an episode that does not exist.
    """
    if not 0 <= number < dataset.card.episodes:
        raise UsageError(f"episode {number}: {dataset.id} has the episodes 0 to {dataset.card.episodes - 1}")
    first, end = (int(row) for row in dataset.episode_start[number : number + 2])
    note = _shortened(end - 1 - first)
    end = min(end, first + MOST_STEPS + 1)
    frames, steps = slice(first, end), slice(first, end - 1)
    arrays = dataset.card.arrays

    def read(name: str) -> np.ndarray | None:
        return dataset.read(name, frames).numpy() if name in arrays else None

    position, obs, team_reward = read("position"), read("obs"), dataset.read("team_reward", steps).numpy()
    scene = scene_of(dataset.spec, position, obs, read("state"), read("alive"))
    truth = dataset.read("agent_reward", steps).numpy() if "agent_reward" in arrays else None
    told = _told(truth, team_reward, dataset.spec.n_agents)
    std = None
    if report is not None:
        credit = report.credit
        told = report.name, credit.reward[steps].numpy()
        std = None if credit.std is None else credit.std[steps].numpy()
        rows = credit.heldout_rows
        if rows is not None and bool((rows == first).any()):
            what = f"{what}, held out of the fit".removeprefix(", ")
    return ShownEpisode(
        title=f"episode {number}" + (f" ({what})" if what else ""),
        source=dataset.id,
        agents=dataset.spec.agents,
        scene=scene,
        team_reward=team_reward,
        reward=told[1],
        reward_name=told[0],
        std=std,
        truth=truth,
        note=note,
    )


def telling_episodes(dataset: Dataset, report: CreditReport | None, count: int) -> dict[int, str]:
    """Numbers of up to `count` episodes worth seeing, and why: the typical, the best, the worst, some between.

    First those that were held out of the fit of `report`, where there are any.
    """
    start = dataset.episode_start.numpy()
    total = np.add.reduceat(dataset.read("team_reward").double().numpy(), start[:-1])
    order = np.argsort(total, kind="stable")  # from the worst to the best
    first, rest = order, order[:0]
    if report is not None and report.credit.heldout_rows is not None:
        rows = report.credit.heldout_rows.numpy()
        heldout = np.isin(order, np.searchsorted(start, rows, side="right") - 1)
        first, rest = order[heldout], order[~heldout]
    told = {int(first[len(first) // 2]): "of median return"}
    told.setdefault(int(first[-1]), "of the highest return")
    told.setdefault(int(first[0]), "of the lowest return")
    for some in (first, rest):
        for place in np.linspace(0, len(some) - 1, min(count, len(some))).astype(int):
            told.setdefault(int(some[place]), "")
    return dict(list(told.items())[:count])


@torch.no_grad()
def played_episodes(
    run: RunFolder, count: int, seed: int = 0, pictures_of: int | None = None, weights_of: str | None = None
) -> list[ShownEpisode]:
    """Let the policy of a run's first seed play `count` episodes, with the true rewards where the task tells them.

    A PettingZoo task that tells no positions draws the episode `pictures_of` itself. `weights_of` names an
    agent whose neighbours are shown with what it makes of them. Raises `OffmarlError` where the environment or the
    policy cannot be had, `UsageError` where that agent weighs nobody.
    """
    policy = load_policy(run).of_seed(0)
    if weights_of is not None:
        require_weights(policy.learner, policy.spec, weights_of)
    with _environment(policy.spec, count, pictures_of is not None) as env:
        generator = stream(seed, "rollout", "policy", device=env.device)
        frame = env.reset(stream_seed(seed, "rollout", "reset"))
        record = _Recording(env, frame, pictures_of if frame.position is None else None)
        policy.begin(torch.ones(count, dtype=torch.bool, device=env.device), generator)
        for _ in range(min(env.spec.horizon, MOST_STEPS)):
            step = env.step(policy.act(frame, generator))
            record.add(step)
            if record.over.all():
                break
            if step.done.any():
                policy.begin(step.done, generator)
            frame = step.frame
        shown = [record.episode(copy, run.id) for copy in range(count)]
        if weights_of is None:
            return shown
        return [
            _weighed(episode, record.states(copy), policy.learner, policy.spec, weights_of)
            for copy, episode in enumerate(shown)
        ]


def _weighed(
    episode: ShownEpisode, state: torch.Tensor, learner: Learner, spec: EnvSpec, agent: str
) -> ShownEpisode:
    """The same episode as `agent` sees it, with its neighbours' weights in the states [T + 1, D]."""
    assert episode.scene is not None
    weights = neighbour_weights(learner, spec, agent, state, episode.scene)
    scene = around(episode.scene, weights.unit, spec)
    return replace(
        episode,
        scene=scene,
        weights=weights,
        title=f"{episode.title.split(' that')[0]}: weights of {agent} in %",
    )


class _Recording:
    """What is seen and earned in the first episode of every copy."""

    def __init__(self, env: Environment, frame: Frame, drawn: int | None) -> None:
        self._env, self._frames = env, [frame]
        self._steps: list[Step] = []
        self.length = torch.zeros(env.num_envs, dtype=torch.int64)
        self.over = torch.zeros(env.num_envs, dtype=torch.bool)
        self._drawn = drawn
        self._pictures: list[np.ndarray] = []
        if (picture := self._picture()) is not None:
            self._pictures.append(picture)

    def add(self, step: Step) -> None:
        self._frames.append(step.successor)
        self._steps.append(step)
        self.length += ~self.over
        if self._pictures and not self.over[self._drawn]:
            # A copy that ended was reset within the step: its last frame cannot be drawn any more.
            picture = None if step.done[self._drawn] else self._picture()
            self._pictures.append(self._pictures[-1] if picture is None else picture)
        self.over |= step.done.cpu()

    def _picture(self) -> np.ndarray | None:
        if self._drawn is None or not isinstance(self._env, PettingZooEnvironment):
            return None
        return self._env.picture(self._drawn)

    def states(self, copy: int) -> torch.Tensor:
        """[T + 1, D]."""
        seen = [
            frame.state[copy]
            for frame in self._frames[: int(self.length[copy]) + 1]
            if frame.state is not None
        ]
        return torch.stack(seen)

    def episode(self, copy: int, source: str) -> ShownEpisode:
        spec, T = self._env.spec, int(self.length[copy])

        def read(name: str) -> np.ndarray | None:
            seen = [getattr(frame, name) for frame in self._frames[: T + 1]]
            return None if seen[0] is None else torch.stack([one[copy] for one in seen]).cpu().numpy()

        steps = self._steps[:T]
        team_reward = torch.stack([step.team_reward[copy] for step in steps]).cpu().numpy()
        paid = [step.agent_reward[copy] for step in steps if step.agent_reward is not None]
        truth = torch.stack(paid).cpu().numpy() if paid and spec.has_agent_reward else None
        name, reward = _told(truth, team_reward, spec.n_agents)
        return ShownEpisode(
            title=f"episode {copy} that the policy played",
            source=source,
            agents=spec.agents,
            scene=scene_of(spec, read("position"), read("obs"), read("state"), read("alive")),
            team_reward=team_reward,
            reward=reward,
            reward_name=name,
            truth=truth,
            pictures=np.stack(self._pictures) if self._pictures and copy == self._drawn else None,
            note="" if self.over[copy] else _shortened(spec.horizon),
        )


def _environment(spec: EnvSpec, count: int, pictures: bool) -> Environment:
    """Copies of the task; with `pictures` those of a foreign module are asked to draw themselves."""
    if pictures and spec.backend.startswith("pettingzoo:") and "render_mode" not in spec.options:
        try:
            options = {**spec.options, "render_mode": "rgb_array"}
            return task_of(spec, count, options)
        except OffmarlError:
            pass  # it cannot draw itself
    return task_of(spec, count)


def _told(truth: np.ndarray | None, team_reward: np.ndarray, n_agents: int) -> tuple[str, np.ndarray]:
    """What the agents are paid where nothing was decomposed, and the name of these rewards."""
    if truth is not None:
        return "true", truth
    return "mean", np.repeat(team_reward[:, None] / n_agents, n_agents, axis=1)


def _shortened(steps: int) -> str:
    return f"the first {MOST_STEPS:,} of {steps:,} steps" if steps > MOST_STEPS else ""
