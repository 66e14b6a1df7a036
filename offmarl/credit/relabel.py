"""From a dataset to its credit files, and from a credit file to the rewards that agents are taught with.

A credit file lies in the folder `credit/` of its dataset: `NAME.h5` holds the arrays and what they belong to,
`NAME.json` says the same of the fit for people. Shapes: R rows, N agents, V variables of a transition.
"""

import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

import offmarl
from offmarl.atomic import replacing, write_json
from offmarl.credit.answer import checked
from offmarl.credit.base import AgentVerdict, Credit, Progress
from offmarl.credit.diagnosis import agreement_with_truth
from offmarl.credit.registry import decomposer_class, make_decomposer
from offmarl.data.hdf5 import DAMAGE
from offmarl.data.load import load_transitions
from offmarl.data.store import Dataset
from offmarl.data.validate import require_valid
from offmarl.errors import DataError, UsageError
from offmarl.settings import configure

FOLDER = "credit"  # inside the dataset's folder
FORMAT = "offmarl-credit"
VERSION = 1
BUILT_IN = ("team", "mean", "true")  # rewards that need no file
DOUBTFUL_EDGE = 0.05  # probability from which an edge that was not kept is still worth telling


@dataclass(frozen=True)
class CreditReport:
    """What a decomposition found; everything that `offmarl decompose` and `offmarl credit show` print."""

    name: str
    path: Path  # of the credit file
    method: str
    config: dict[str, Any]  # every setting of the method
    seed: int
    created: str  # ISO 8601, UTC
    seconds: float
    credit: Credit
    truth: dict[str, float | None] | None  # agreement with the true rewards on held-out rows, where known

    def edges(self, agent: int) -> list[dict[str, Any]]:
        """The variables an agent's reward may depend on, the most probable first.

        Those that were kept, shared parents (see `Credit.shared_parents`), and those that were not kept but have a
        probability of at least `DOUBTFUL_EDGE`.
        """
        credit = self.credit
        if credit.masks is None:
            return []
        kept = credit.masks[agent].cpu()
        probability = (
            kept.double() if credit.edge_probability is None else credit.edge_probability[agent].cpu()
        )
        shared = torch.zeros_like(kept) if credit.shared_parents is None else credit.shared_parents
        found = [
            {
                "variable": credit.input_names[k],
                "probability": round(float(probability[k]), 4),
                "kept": bool(kept[k]),
                "shared": bool(shared[k]),
            }
            for k in (kept | shared | (probability >= DOUBTFUL_EDGE)).nonzero().flatten().tolist()
        ]
        return sorted(found, key=lambda edge: (not edge["kept"], not edge["shared"], -edge["probability"]))

    def typical_std(self) -> list[float] | None:
        """Root mean square, by agent, of the spread of its reward over the ensemble on held-out transitions."""
        std, rows = self.credit.std, self.credit.heldout_rows
        if std is None:
            return None
        known = std if rows is None else std[rows]
        spread: list[float] = known.double().square().mean(0).sqrt().tolist()
        return spread

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, ready for `json.dumps`: never NaN, null where something is undefined."""
        answer = {
            "credit": self.name,
            "method": self.method,
            "seed": self.seed,
            "created": self.created,
            "fit_r2": self.credit.metrics.get("fit_r2"),
            "fallback": self.credit.fallback,
            "truth": self.truth,
            "seconds": round(self.seconds, 2),
            "agents": [asdict(agent) for agent in self.credit.agents],
            "reason": self.credit.reason,
            "metrics": self.credit.metrics,
            "edges": {agent.name: self.edges(index) for index, agent in enumerate(self.credit.agents)},
            "std": self.typical_std(),
        }
        finite: dict[str, Any] = _without_nan(answer)
        return finite


def decompose(
    dataset: Dataset,
    method: str = "macca",
    values: Mapping[str, Any] | None = None,
    seed: int = 0,
    name: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> CreditReport:
    """Split the team reward of `dataset` and write the credit file `name` (by default the method's).

    It goes into the dataset's folder, or into the folder `out`; there it is found by its path.

    The true rewards, where the dataset has them, are read after the fit and only to say how well it did.
    Raises `UsageError` for an unknown method or setting, a reserved name, agents who fight each other, or a
    file that exists already and is not to be overwritten; `DataError` for an unfinished or damaged dataset.
    """
    # A wrong method or setting is told before a wrong name.
    config: Any = configure(decomposer_class(method).config_class, dict(values or {}), "credit")
    name = name or method.replace(":", "-")
    _check_name(name, method)
    path = credit_path(dataset, name) if out is None else out / f"{name}.h5"
    if path.exists() and not overwrite:
        raise UsageError(
            f"credit '{name}' exists already ({path}): --overwrite replaces it, --name NAME writes beside it"
        )
    _require_team(dataset)
    dataset.require_complete()
    require_valid(dataset, None if progress is None else partial(progress, "check the data"))
    started = time.perf_counter()
    decomposer = make_decomposer(method, dataset.spec, dict(values or {}), seed, device, progress)
    transitions = load_transitions(dataset, device, obs=decomposer.reads_obs or not dataset.spec.state_owner)
    decomposer.fit(transitions)
    credit = checked(decomposer.assign(transitions), transitions, method)
    seconds = time.perf_counter() - started
    rows = transitions.transition_rows if credit.heldout_rows is None else credit.heldout_rows
    report = CreditReport(
        name=name if out is None else str(path),
        path=path,
        method=method,
        config=asdict(config),
        seed=seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        credit=credit,
        truth=_truth(dataset, credit, rows.cpu()),
    )
    _write(report, dataset)
    return report


def _require_team(dataset: Dataset) -> None:
    """Raise `UsageError` where the agents are not on one side.

    Measured on a battle of 25 against 25 summed over both armies: what predicts a kill best is the victim's own health,
    so the victims were paid for their deaths (skill -0.9), with every diagnosis in order.
    """
    spec = dataset.spec
    if spec.opposed:
        sides = " and ".join(group[0].rpartition("_")[0] for group in spec.groups)
        raise UsageError(
            f"{dataset.id}: {sides} fight each other, so the sum of their rewards is no team's; collect one side, "
            f"e.g. --set env.background={spec.groups[-1][0].rpartition('_')[0]}"
        )


def stored_report(dataset: Dataset, name: str | Path) -> CreditReport:
    """What `decompose` reported when it wrote the credit `name`. Raises like `rewards_for`."""
    path = _find(dataset, name)
    with _opened(path, dataset) as file:
        about = json.loads(file.attrs["about"])
        return CreditReport(
            name=str(name),
            path=path,
            method=about["method"],
            config=about["config"],
            seed=about["seed"],
            created=about["created"],
            seconds=about["seconds"],
            credit=_credit(file, about),
            truth=about["truth"],
        )


def rewards_for(dataset: Dataset, name: str | Path) -> Tensor:
    """What each agent is taught with: [R, N] float32, 0 on the last row of an episode.

    `name` is `team` (everyone gets R), `mean` (R/N), `true` (the environment's own), a credit of the dataset or
    the path of a credit file. Where agents fight each other R and N are those of an agent's own side. Raises
    `UsageError` for a name that is not there (with what is, and the command that makes it), `DataError` for a
    file that is damaged or belongs to other data.
    """
    require_rewards(dataset, name)
    if name in ("team", "mean"):
        return _zero_at_ends(dataset, _team_reward(dataset, shared=name == "mean"))
    if name == "true":
        return _zero_at_ends(dataset, dataset.read("agent_reward").float())
    path = _find(dataset, name)
    with _opened(path, dataset) as file:
        reward = torch.from_numpy(file["reward"][:])
    if not bool(reward.isfinite().all()):
        raise DataError(f"{path}: array 'reward' holds values that are not finite; decompose again")
    return reward


def _team_reward(dataset: Dataset, shared: bool) -> Tensor:
    """R of the side that each agent is on, or with `shared` R/N of it: [R, N] float32, a copy."""
    spec = dataset.spec
    if not spec.opposed:
        team_reward = dataset.read("team_reward").float()
        team_reward = team_reward / spec.n_agents if shared else team_reward
        return team_reward[:, None].expand(-1, spec.n_agents).clone()
    reward = dataset.read("agent_reward").float()
    for group in spec.groups:
        side = [spec.agents.index(agent) for agent in group]
        earned = reward[:, side].mean(1) if shared else reward[:, side].sum(1)
        reward[:, side] = earned[:, None].expand(-1, len(side))
    return reward


def require_rewards(dataset: Dataset, name: str | Path) -> None:
    """Raise `UsageError` for rewards that `rewards_for` would not find, without reading any data."""
    of_a_side = dataset.spec.opposed and name in ("team", "mean")
    if (name == "true" or of_a_side) and "agent_reward" not in dataset.card.arrays:
        raise UsageError(
            f"dataset {dataset.id} does not say what each agent truly earned; rewards it offers: "
            f"{', '.join(available_rewards(dataset))}"
        )
    if name not in BUILT_IN:
        _find(dataset, name)


def read_credit(dataset: Dataset, name: str | Path) -> Credit:
    """Read a credit file with everything a figure needs. Raises like `rewards_for`."""
    return stored_report(dataset, name).credit


def about_credit(dataset: Dataset, name: str | Path) -> dict[str, Any]:
    """What a credit file says of itself, without its arrays. Raises like `rewards_for`."""
    with _opened(_find(dataset, name), dataset) as file:
        about: dict[str, Any] = json.loads(file.attrs["about"])
    return about


def latest_credit(dataset: Dataset) -> str:
    """Name the decomposition that was made last. Raises `UsageError` where there is none."""
    names = credit_names(dataset)
    if not names:
        raise UsageError(
            f"dataset {dataset.id} has no decomposition yet. Make one with: offmarl decompose --dataset {dataset.id}"
        )
    return max(names, key=lambda name: credit_path(dataset, name).stat().st_mtime_ns)


def agreement(dataset: Dataset, name: str | Path) -> dict[str, float | None] | None:
    """Agreement of the rewards `name` with the truth, None where the dataset does not hold it.

    Of a decomposition what was measured on the episodes that were held out of its fit, of `team`, `mean` and
    `true` over all transitions. Raises like `rewards_for`.
    """
    if "agent_reward" not in dataset.card.arrays:
        return None
    if name not in BUILT_IN:
        truth: dict[str, float | None] | None = about_credit(dataset, name)["truth"]
        return truth
    rows = torch.ones(dataset.card.rows, dtype=torch.bool)
    rows[dataset.episode_start[1:] - 1] = False
    reward, team_reward = rewards_for(dataset, name)[rows], dataset.read("team_reward")[rows]
    return agreement_with_truth(reward, rewards_for(dataset, "true")[rows], team_reward, equal=name != "true")


def available_rewards(dataset: Dataset) -> list[str]:
    """Names that `rewards_for` takes for this dataset."""
    built_in = [name for name in BUILT_IN if name != "true" or "agent_reward" in dataset.card.arrays]
    return built_in + [name for name in credit_names(dataset) if name not in built_in]


def credit_names(dataset: Dataset) -> list[str]:
    """The decompositions of a dataset that lie beside it."""
    return sorted(path.stem for path in (dataset.folder / FOLDER).glob("[!.]*.h5"))


def credit_path(dataset: Dataset, name: str) -> Path:
    """Where credit `name` of a dataset lies."""
    return dataset.folder / FOLDER / f"{name}.h5"


def _check_name(name: str, method: str) -> None:
    if name in BUILT_IN and name != method:
        raise UsageError(f"'{name}' is a built-in reward ({', '.join(BUILT_IN)}): choose another --name")
    if not name or name.startswith((".", "-")) or not all(sign.isalnum() or sign in "-_." for sign in name):
        raise UsageError(f"'{name}' cannot name a credit file: use letters, digits, '-', '_' and '.'")


def _find(dataset: Dataset, name: str | Path) -> Path:
    """The credit file behind a name or a path."""
    if isinstance(name, Path) or "/" in name or name.endswith(".h5"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(f"there is no credit file {path}")
        return path
    path = credit_path(dataset, name)
    if not path.is_file() and name in BUILT_IN:
        raise UsageError(
            f"'{name}' is a built-in reward: nothing was decomposed for it; decompositions of {dataset.id}: "
            f"{', '.join(credit_names(dataset)) or 'none'}"
        )
    if not path.is_file():
        raise UsageError(
            f"dataset {dataset.id} has no credit '{name}'; it offers: {', '.join(available_rewards(dataset))}. "
            f"Make one with: offmarl decompose --dataset {dataset.id}"
        )
    return path


@contextmanager
def _opened(path: Path, dataset: Dataset) -> Iterator[h5py.File]:
    """Open a credit file of `dataset`; whatever cannot be read of it becomes a `DataError`."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT or "reward" not in file:
                raise DataError(f"{path} is no credit file: those are written by offmarl decompose")
            _check_belongs(file, path, dataset)
            yield file
    except DAMAGE as error:
        raise DataError(f"{path} is damaged ({error}): decompose again with --overwrite") from error


def _check_belongs(file: h5py.File, path: Path, dataset: Dataset) -> None:
    """Raise `DataError` unless the credit was made from this very data."""
    shape, expected = file["reward"].shape, (dataset.card.rows, dataset.spec.n_agents)
    if shape != expected:
        raise DataError(
            f"{path} has rewards {list(shape)}, dataset {dataset.id} needs [R, N] = {list(expected)}"
        )
    if file.attrs["dataset_sha256"] != dataset.card.sha256:
        raise DataError(
            f"{path} was made from {file.attrs['dataset_id']} with other contents than dataset {dataset.id} has "
            f"now (sha256 {file.attrs['dataset_sha256'][:12]}, not {dataset.card.sha256[:12]}): decompose again "
            "with --overwrite"
        )


def _credit(file: h5py.File, about: Mapping[str, Any]) -> Credit:
    """The arrays of an open credit file and what it says about them."""

    def array(key: str) -> Tensor | None:
        return torch.from_numpy(file[key][:]) if key in file else None

    mask, reward, shared_parents = array("mask"), array("reward"), array("shared_parents")
    assert reward is not None
    return Credit(
        reward=reward,
        std=array("std"),
        masks=None if mask is None else mask.bool(),
        edge_probability=array("edge_probability"),
        shared_parents=None if shared_parents is None else shared_parents.bool(),
        input_names=tuple(file["input_names"].asstr()[:]) if "input_names" in file else (),
        heldout_rows=array("heldout_rows"),
        metrics=about["metrics"],
        agents=[AgentVerdict(**agent) for agent in about["agents"]],
        fallback=about["fallback"],
        reason=about["reason"],
    )


def _zero_at_ends(dataset: Dataset, reward: Tensor) -> Tensor:
    """The last row of an episode has no action and earns nothing."""
    reward[dataset.episode_start[1:] - 1] = 0
    return reward


def _truth(dataset: Dataset, credit: Credit, rows: Tensor) -> dict[str, float | None] | None:
    """Agreement with the true rewards on `rows`, None where the dataset does not hold them."""
    if "agent_reward" not in dataset.card.arrays:
        return None
    return agreement_with_truth(
        credit.reward[rows],
        dataset.read("agent_reward")[rows],
        dataset.read("team_reward")[rows],
        credit.masks,
        credit.input_names,
        dataset.spec.causes,
        equal=credit.equal,
    )


def _write(report: CreditReport, dataset: Dataset) -> None:
    """Write the arrays, then the json; a reader needs only the arrays' file."""
    credit = report.credit
    about = report.to_json() | {
        "config": report.config,
        "dataset": dataset.id,
        "dataset_sha256": dataset.card.sha256,
        "versions": {
            "offmarl": offmarl.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    arrays = {
        "reward": credit.reward.float(),
        "std": credit.std,
        "mask": None if credit.masks is None else credit.masks.to(torch.uint8),
        "edge_probability": credit.edge_probability,
        "shared_parents": None if credit.shared_parents is None else credit.shared_parents.to(torch.uint8),
        "heldout_rows": credit.heldout_rows,
    }
    with replacing(report.path) as temporary, h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file.create_dataset(name, data=array.cpu().numpy(), fletcher32=True)
        file.create_dataset("input_names", data=np.array(credit.input_names, dtype=h5py.string_dtype()))
        file.attrs.update(
            format=FORMAT,
            version=VERSION,
            dataset_id=dataset.id,
            dataset_sha256=dataset.card.sha256,
            about=json.dumps(about, allow_nan=False),
        )
    write_json(report.path.with_suffix(".json"), about)


def _without_nan(value: Any) -> Any:
    """`value` with None for every float that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
