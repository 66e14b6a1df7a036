"""Who plays in a tournament, by name: a run, a behaviour policy in a file, `random` or `charge`."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from offmarl.behaviour.checkpoint import load_policy_file
from offmarl.behaviour.players import ByChance, Charging, Learned, Player
from offmarl.envs.magent_render import Renderer
from offmarl.errors import UsageError
from offmarl.learners.base import Learner
from offmarl.learners.meanfield.base import MeanFieldLearner
from offmarl.learners.registry import LEARNERS
from offmarl.training.checkpoint import read_tensors
from offmarl.training.run import find_run, load_policy
from offmarl.training.units import UnitPolicy

RULES: dict[str, type[ByChance | Charging]] = {"random": ByChance, "charge": Charging}
UNIT_LEARNERS = [name for name, kinds in LEARNERS.items() if "rendered" in kinds]


@dataclass(frozen=True)
class Contestant:
    """One player or, of a run of several seeds, one for each."""

    name: str  # what tables call it
    identity: str  # different for whatever plays differently
    seeds: tuple[int, ...] = (0,)
    learner: MeanFieldLearner | None = None  # None: it follows a rule

    @property
    def trained_on(self) -> int | None:
        """Units of the first side in training; None for a rule."""
        agents: int | None = None if self.learner is None else self.learner.spec.options["agents"]
        return agents

    def require_known(self, side: Renderer) -> None:
        """Raise `UsageError` where it cannot play the units of a side."""
        if self.learner is not None:
            self.learner.require_known(side)

    def players(self, epsilon: float) -> list[Player]:
        """Give the players; of the choices of a learner a share `epsilon` is random."""
        if self.learner is None:
            return [RULES[self.name]()]
        return [Learned(self.learner.of_seed(index), epsilon) for index in range(len(self.seeds))]


def find_contestant(
    name: str, env: str, device: torch.device | str = "cpu", shown: str | None = None
) -> Contestant:
    """Find who is meant by `name`: `random`, `charge`, a file FILE.safetensors, or a run by its id or path.

    Tables call it `shown`; without that a file by its folder, and a run by its id.
    Raises `UsageError` for an unknown name, for what was trained in another environment than `env`, and for a
    learner that only acts for the agents that it was trained with.
    """
    if name in RULES:
        return Contestant(name, name)
    path = Path(name).expanduser()
    learner: Learner | None = None
    if path.suffix == ".safetensors":
        policy, trained_on = load_policy_file(path, device)
        title, task, source = f"{path.parent.name}/{path.stem}", trained_on.id, path
        learner = policy.learner if isinstance(policy, UnitPolicy) else None
    else:
        run = find_run(name)
        title, task, source = run.id, run.spec.id, run.checkpoint_path
        if task == env:
            learner = load_policy(run, device).learner
    title = shown or title
    if task != env:
        raise UsageError(f"{title} was trained in {task}, these games are played in {env}")
    if not isinstance(learner, MeanFieldLearner):
        raise UsageError(
            f"{title} acts for the very agents that it was trained with: games are for learners of single units "
            f"({', '.join(UNIT_LEARNERS)}), random and charge"
        )
    return Contestant(title, _identity(learner, source), tuple(learner.seeds), learner)


def _identity(learner: MeanFieldLearner, source: Path) -> str:
    """The same for whatever plays alike: by what the file holds, since the same training may write other bytes."""
    metadata, tensors = read_tensors(source, "policy", "cpu")
    about = [type(learner).__name__, asdict(learner.config), learner.spec.model_dump(mode="json"), metadata]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def find_contestants(names: Sequence[str], env: str, device: torch.device | str = "cpu") -> list[Contestant]:
    """All of them, in order; where two who play differently would be called the same, each as it was given.

    Raises `UsageError` like `find_contestant`.
    """
    found = [find_contestant(name, env, device) for name in names]
    count = Counter(name for name, _ in {(one.name, one.identity) for one in found})
    return [
        replace(one, name=str(Path(given))) if count[one.name] > 1 else one
        for one, given in zip(found, names, strict=True)
    ]
