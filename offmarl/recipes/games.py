"""The stages of a benchmark's games: contestants that learn by playing, opponents, and what came of their games."""

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from offmarl.behaviour.contestants import RULES, UNIT_LEARNERS, Contestant, find_contestant
from offmarl.behaviour.qualities import TaskKey, TrainedBehaviour, trained_behaviour
from offmarl.behaviour.schedule import Schedule
from offmarl.behaviour.tournament import TASKS, Rules, play_pair
from offmarl.behaviour.tuning import behaviour_config
from offmarl.data.catalog import find_dataset
from offmarl.errors import UsageError, unknown_name
from offmarl.recipes.recipe import CellSettings, OnlineStage, PlayStage, TrainStage, algorithm_of
from offmarl.reporter import Silent
from offmarl.training.run import RunFolder

BEHAVIOUR = "behaviour"  # the opponent that collected the data


def learnt_opponent(settings: CellSettings) -> OnlineStage | TrainStage | None:
    """How the opponent is taught where it is a learner: as the contestant was, with settings of its own."""
    play = settings.play
    if play is None or play.against in (*RULES, BEHAVIOUR):
        return None
    if settings.online is not None:
        return settings.online.model_copy(update={"behaviour": {"algorithm": play.against, **play.opponent}})
    assert settings.train is not None
    return settings.train.model_copy(update={"learner": play.against, "settings": play.opponent})


def check(settings: CellSettings) -> None:
    """Raise `UsageError` for an opponent or a setting of games that does not exist."""
    play = settings.play
    assert play is not None
    if play.against not in (*RULES, BEHAVIOUR, *UNIT_LEARNERS):
        raise unknown_name("opponent", play.against, [*RULES, BEHAVIOUR, *UNIT_LEARNERS])
    if settings.online is not None:
        if play.against == BEHAVIOUR:
            raise UsageError("play.against: behaviour collected data, and a stage 'online' has none")
        options = settings.online.options
        _rules(play, settings.online.env, options).spec(play.agents or options.get("agents", 1))
        for stage in (settings.online, learnt_opponent(settings)):
            if isinstance(stage, OnlineStage):
                _config(stage).check()


def learn_online(stage: OnlineStage, device: str) -> TrainedBehaviour:
    """Let policies learn by playing, or take what the same training left in the cache."""
    assert stage.seed is not None
    return trained_behaviour(_task(stage, device), _config(stage), stage.seed, Silent())


def measure_online(settings: CellSettings, device: str) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Metrics of the games of policies that learnt by playing, and details."""
    stage, play = settings.online, settings.play
    assert stage is not None
    assert play is not None
    contestant = _online_contestant(stage, device)
    opponent = learnt_opponent(settings)
    if isinstance(opponent, OnlineStage):
        against = _online_contestant(opponent, device)
    else:
        against = find_contestant(play.against, stage.env, device)
    return _played(contestant, against, play, stage.env, stage.options, device)


def measure_trained(
    settings: CellSettings, run: RunFolder, opponent: Path | None, source: Path | str, device: str
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Metrics of the games of the policies of `run`, trained on the data `source`; `opponent` is another run."""
    play, spec = settings.play, run.spec
    assert play is not None
    assert settings.train is not None
    contestant = find_contestant(str(run.folder), spec.id, device, settings.train.learner)
    if opponent is not None:
        against = find_contestant(str(opponent), spec.id, device, play.against)
    elif play.against == BEHAVIOUR:
        against = _behaviour_contestant(source, spec.id, device)
    else:
        against = find_contestant(play.against, spec.id, device)
    options = spec.options if settings.collect is None else settings.collect.options
    values, details = _played(contestant, against, play, spec.id, options, device)
    return values, {**details, "metrics": run.summary}


def _played(
    a: Contestant, b: Contestant, play: PlayStage, env: str, options: Mapping[str, Any], device: str
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Let the two play, by default with as many units as `a` learnt with."""
    assert a.trained_on is not None
    before = time.process_time()
    pair = play_pair(a, b, play.agents or a.trained_on, _rules(play, env, options, device))
    found = {
        "draw_rate": pair.draw_rate,
        "points": pair.points,
        "annihilated": pair.annihilated,
        "enemies_left": pair.enemies_left,
        "own_left": pair.own_left,
        "reward_first": pair.a_reward[0],
        "reward_second": pair.a_reward[1],
        "steps": pair.steps,
        "games": float(pair.games),
        "play_seconds": pair.seconds,
        "play_cpu_seconds": time.process_time() - before,
    }
    values = {name: [value] for name, value in found.items() if value is not None}
    if pair.win_rate_by_seed is not None:
        values["win_rate"] = [fmean(rates) for rates in pair.win_rate_by_seed]
    return values, {"pair": pair.model_dump(mode="json")}


def _rules(play: PlayStage, env: str, options: Mapping[str, Any], device: str = "cpu") -> Rules:
    """Rules of games in a task learnt with `options`; what fits its number of units only is not taken over."""
    left_out = {"agents", "background", "opponent"}
    if play.agents not in (None, options.get("agents")):
        left_out |= {"map_size", "prey"}
    kept = {name: value for name, value in options.items() if name not in left_out}
    return Rules(env, kept, play.games, play.epsilon, play.seed or 0, device)


def _online_contestant(stage: OnlineStage, device: str) -> Contestant:
    trained = learn_online(stage, device)
    file = trained.folder / f"{stage.quality}.safetensors"
    return find_contestant(str(file), stage.env, device, algorithm_of(stage))


def _behaviour_contestant(source: Path | str, env: str, device: str) -> Contestant:
    """Who collected the dataset `source`."""
    with find_dataset(source) as dataset:
        provenance = dataset.card.provenance
    rule = {"random": "random", "scripted": "charge"}.get(provenance["quality"])
    if rule is not None:
        return find_contestant(rule, env, device)
    if "behaviour" not in provenance:
        raise UsageError(f"play.against: {source} does not say which policy collected it")
    folder = Path(provenance["behaviour"]["training"])
    file = folder / f"{provenance['quality']}.safetensors"
    return find_contestant(str(file), env, device, BEHAVIOUR)


def _task(stage: OnlineStage, device: str = "cpu") -> TaskKey:
    return TaskKey(stage.env, "offmarl", stage.options, device)


def _config(stage: OnlineStage) -> Schedule:
    """Its settings. Raises `UsageError` for one that does not exist, and a task that cannot be rendered."""
    if stage.env not in TASKS:
        raise UsageError(f"online.env: {stage.env} has no games; {' and '.join(TASKS)} have")
    return behaviour_config(_task(stage).describe(), stage.behaviour)
