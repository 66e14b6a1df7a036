"""The stage `collect`: find or train a behaviour policy, then record its episodes as a dataset."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offmarl.behaviour.checkpoint import load_policy_file
from offmarl.behaviour.online import OnlineConfig, train_online
from offmarl.behaviour.qualities import (
    QUALITIES,
    TRAINED,
    TaskKey,
    TrainedBehaviour,
    self_play_copies,
    trained_behaviour,
)
from offmarl.behaviour.random import RandomPolicy
from offmarl.behaviour.schedule import Schedule
from offmarl.behaviour.scripted import scripted_policy
from offmarl.behaviour.self_play import SelfPlayConfig, own_side, train_self_play
from offmarl.behaviour.tuning import behaviour_config
from offmarl.behaviour.wrappers import FreeRiders, NoisyPolicy, check_free_riders
from offmarl.data.catalog import datasets_folder, reference_returns
from offmarl.data.collect import collect
from offmarl.data.record import EpisodeRecorder
from offmarl.data.schema import check_id
from offmarl.data.store import Dataset, partial_folder
from offmarl.data.writer import Writer, check_replaceable
from offmarl.envs.base import Environment, EnvSpec, Policy
from offmarl.errors import DataError, UsageError, unknown_name
from offmarl.learners.meanfield.base import MeanFieldLearner
from offmarl.reporter import Reporter, Silent
from offmarl.training.units import UnitPolicy

DEFAULT_TRANSITIONS = 200_000  # a few seconds in the particle world
SLOW_TRANSITIONS = 20_000  # environments stepped one by one in worker processes
DEFAULT_COPIES = 500
SLOW_COPIES = 16


@dataclass(frozen=True)
class CollectRequest:
    """What a person asked for."""

    env: str
    quality: str = "expert"
    transitions: int | None = None
    num_envs: int | None = None
    policy: str | None = None
    free_riders: int = 0
    backend: str = "offmarl"
    name: str | None = None
    seed: int = 0
    out: Path | None = None
    overwrite: bool = False
    device: str = "cpu"
    env_options: dict[str, Any] | None = None
    behaviour: dict[str, Any] | None = None
    command: str = ""


def collect_dataset(request: CollectRequest, reporter: Reporter) -> Dataset:
    """Collect what was asked for; an interrupted collection goes on where it was.

    Raises `UsageError` for names and values that do not exist and where the dataset stands already,
    `DataError` for a policy that belongs to another task.
    """
    if request.quality not in QUALITIES:
        raise unknown_name("quality", request.quality, QUALITIES)
    task = TaskKey(request.env, request.backend, request.env_options or {}, request.device)
    spec = task.describe()
    dataset_id = check_id(request.name or default_id(request))
    folder = request.out or datasets_folder() / dataset_id
    check_replaceable(folder)
    if folder.exists() and not request.overwrite:
        raise UsageError(
            f"{folder} exists already: --overwrite replaces it, "
            f"--name {_next_version(dataset_id)} writes beside it"
        )
    replayed = request.policy is None and request.quality == "medium-replay"
    if request.free_riders:
        check_free_riders(request.free_riders, spec)
        if replayed:
            raise UsageError("--free-riders: medium-replay is what training saw; choose another --quality")
    if request.num_envs and replayed:
        raise UsageError(
            "--num-envs: medium-replay is what training saw, in its own copies: "
            f"--set behaviour.num_envs={request.num_envs}"
        )
    config = behaviour_config(spec, request.behaviour or {})
    needs_training = request.policy is None and request.quality in TRAINED
    if needs_training:
        config.check()
    transitions = request.transitions or (SLOW_TRANSITIONS if _slow(spec) else DEFAULT_TRANSITIONS)
    amount = f"{transitions:,} transitions"
    if replayed and request.transitions is None:
        amount = "everything that training saw"
    reporter.say(f"collect {amount} of {spec.id}, {_label(request)}, into {folder}")
    used = {_noise_setting(config, spec)} if _explores(request) else set()
    if not needs_training and (idle := sorted((request.behaviour or {}).keys() - used)):
        reporter.say(
            f"nothing is trained for {_label(request)}: behaviour.{', behaviour.'.join(idle)} not used"
        )

    trained = trained_behaviour(task, config, request.seed, reporter) if needs_training else None
    provenance = {
        "command": request.command,
        "quality": "policy" if request.policy else request.quality,
        "policy": request.policy,
        "free_riders": request.free_riders,
        "exploration": _exploration(request, config, spec),
        "seed": request.seed,
    }
    if trained is not None:
        provenance["behaviour"] = {
            "training": str(trained.folder),
            "expert_return": trained.expert_return,
            "medium_return": trained.medium_return,
        }
    references = reference_returns(spec) or (trained.references if trained else None)
    if replayed:
        assert trained is not None
        return _record_training(
            request, task, spec, config, trained, folder, dataset_id, provenance, references, reporter
        )

    policy = _policy(request, spec, config, trained)
    copies = request.num_envs or _copies(spec)
    # A given policy may want to be shown observations.
    with task.make(copies) if request.policy else task.make_blind(spec, copies) as env:
        writer = _writer(request, folder, env.spec, dataset_id, provenance, references, reporter)
        with reporter.bar(f"collect {dataset_id}") as progress, writer:
            collect(env, policy, writer, transitions, request.seed, progress)
    return Dataset.open(folder)


def default_id(request: CollectRequest) -> str:
    """`mpe_targets/expert-free-riders-4-v0`: the task, the behaviour, and whatever else departs from the defaults."""
    parts = ["policy" if request.policy else request.quality]
    if request.free_riders:
        parts.append(f"free-riders-{request.free_riders}")
    parts += [f"{key}-{value}" for key, value in sorted((request.env_options or {}).items())]
    parts += [f"{key}-{value}" for key, value in sorted((request.behaviour or {}).items())]
    if request.seed:
        parts.append(f"seed-{request.seed}")
    namespace = (
        request.env if request.backend == "offmarl" else f"{request.env}/{request.backend.partition(':')[0]}"
    )
    return f"{namespace}/{re.sub(r'[^A-Za-z0-9.]+', '-', '-'.join(parts)).strip('-.')}-v0"


def _next_version(dataset_id: str) -> str:
    stem, _, number = dataset_id.rpartition("-v")
    return f"{stem}-v{int(number) + 1}"


def _label(request: CollectRequest) -> str:
    label = f"policy {request.policy}" if request.policy else request.quality
    return f"{label}, {request.free_riders} free riders an episode" if request.free_riders else label


def _slow(spec: EnvSpec) -> bool:
    return spec.backend != "offmarl"


def _copies(spec: EnvSpec) -> int:
    return SLOW_COPIES if _slow(spec) else DEFAULT_COPIES


def _exploration(request: CollectRequest, config: Schedule, spec: EnvSpec) -> dict[str, Any]:
    if not _explores(request):
        return {"kind": "uniform"}
    if spec.discrete:
        return {"kind": "epsilon-greedy", "epsilon": config.exploration}
    return {"kind": "gaussian, clipped to [-1, 1]", "standard_deviation": _noise(config, spec)}


def _noise_setting(config: Schedule, spec: EnvSpec) -> str:
    """What says how much is explored while data are collected: a share of choices, or a standard deviation."""
    return "noise" if isinstance(config, OnlineConfig) and not spec.discrete else "exploration"


def _noise(config: Schedule, spec: EnvSpec) -> float:
    return float(getattr(config, _noise_setting(config, spec)))


def _explores(request: CollectRequest) -> bool:
    """Whether noise is added to what the policy does: random play is noise already."""
    return request.policy is not None or request.quality != "random"


def _policy(
    request: CollectRequest, spec: EnvSpec, config: Schedule, trained: TrainedBehaviour | None
) -> Policy:
    """Who acts: the policy asked for, its exploration noise, its free riders."""
    if request.policy is not None:
        policy: Policy = _given_policy(request.policy, spec, request.device)
    elif request.quality == "random":
        policy = RandomPolicy(spec)
    elif request.quality == "scripted":
        policy = scripted_policy(spec)
    else:
        assert trained is not None
        policy = trained.policy(request.quality, spec, request.device)
    if _explores(request):
        policy = NoisyPolicy(policy, spec, _noise(config, spec))
    return FreeRiders(policy, spec, request.free_riders) if request.free_riders else policy


def _given_policy(name: str, spec: EnvSpec, device: str) -> Policy:
    """The policy of `--policy`: a behaviour file, or a run of `offmarl train` (its first seed)."""
    path = Path(name).expanduser()
    policy: Policy
    if path.suffix == ".safetensors":
        policy, trained_on = load_policy_file(path, device, spec)
        if isinstance(policy, UnitPolicy):
            return policy  # it sees by rendering: on any side, with any number of agents
    else:
        from offmarl.training.run import find_run, load_policy

        loaded = load_policy(find_run(name), device)
        if isinstance(loaded.learner, MeanFieldLearner):
            return loaded.of_seed().on(spec)
        policy, trained_on = loaded.of_seed(), loaded.spec
    for field in ("obs_names", "action_names", "action_type"):
        if getattr(trained_on, field) != getattr(spec, field):
            raise DataError(
                f"--policy {name} was trained on {trained_on.id} ({trained_on.n_agents} agents), whose {field} are not "
                f"those of {spec.id} ({spec.n_agents} agents): it cannot act here"
            )
    return policy


def _writer(
    request: CollectRequest,
    folder: Path,
    spec: EnvSpec,
    dataset_id: str,
    provenance: dict[str, Any],
    references: dict[str, float] | None,
    reporter: Reporter,
) -> Writer:
    """A new writer, or the one of an interrupted collection of the same data."""
    if partial_folder(folder).exists() and not request.overwrite:
        try:
            writer = Writer.resume(folder, spec, provenance=provenance)
        except UsageError as error:
            raise UsageError(f"{error} (--overwrite)") from error
        reporter.say(f"resume the interrupted collection: {writer.transitions:,} transitions are there")
        return writer
    return Writer(
        folder, spec, id=dataset_id, provenance=provenance, references=references, overwrite=request.overwrite
    )


def _training_copies(task: TaskKey, spec: EnvSpec, config: Schedule) -> Environment:
    """Where the behaviour learns."""
    if isinstance(config, SelfPlayConfig):
        return self_play_copies(spec, config, task.device)
    return task.make(config.num_envs)


def _record_training(
    request: CollectRequest,
    task: TaskKey,
    spec: EnvSpec,
    config: Schedule,
    trained: TrainedBehaviour,
    folder: Path,
    dataset_id: str,
    provenance: dict[str, Any],
    references: dict[str, float] | None,
    reporter: Reporter,
) -> Dataset:
    """`medium-replay`: train once more to where the medium policy was taken, and keep every finished episode."""
    until = trained.medium_step
    with _training_copies(task, spec, config) as env:
        if isinstance(config, SelfPlayConfig):  # its games are long: the last ones are played to their end
            until = math.ceil(until / spec.horizon) * spec.horizon
        until = max(until, spec.horizon)  # before that no episode need have ended
        provenance = {**provenance, "until_step": until}
        begun = partial_folder(folder).exists()  # a replay cannot be resumed: it begins again
        if begun and not request.overwrite:  # but refuses where other data was begun
            _writer(request, folder, spec, dataset_id, provenance, references, Silent()).abandon()
        writer = Writer(
            folder,
            spec,
            id=dataset_id,
            provenance=provenance,
            references=references,
            overwrite=request.overwrite or begun,
        )
        with reporter.bar(f"replay {dataset_id}") as progress, writer:
            seen = until * env.num_envs
            share = min((request.transitions or seen) / seen, 1.0)
            recorder = EpisodeRecorder(env, writer, copies=math.ceil(share * env.num_envs))
            if isinstance(config, SelfPlayConfig):
                on_step = own_side(spec, env.spec, recorder)
                train_self_play(env, config, request.seed, progress, on_step, until)
            else:
                assert isinstance(config, OnlineConfig)
                train_online(env, env, config, request.seed, progress, recorder, until)
    dataset = Dataset.open(folder)
    if request.transitions and dataset.card.transitions < request.transitions:
        reporter.say(
            f"training had seen {dataset.card.transitions:,} transitions when it became medium: "
            f"fewer than the {request.transitions:,} asked for"
        )
    return dataset
