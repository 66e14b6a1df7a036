"""Scoring trained runs in their environment: returns, normalised scores, intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from offmarl.atomic import write_json
from offmarl.credit.relabel import agreement
from offmarl.data.catalog import find_dataset, reference_returns
from offmarl.envs.base import EnvSpec
from offmarl.errors import OffmarlError, UsageError
from offmarl.evaluation.rollout import rollout, task_of
from offmarl.evaluation.statistics import Interval, bootstrap_interval
from offmarl.reporter import Progress, Reporter
from offmarl.training.offline import rewards_digest
from offmarl.training.run import RunFolder, find_run, list_runs, load_policy

# How often the 95 % interval of so few seeds holds the mean, of normally distributed values: a test simulates it.
COVERED = {2: 0.50, 3: 0.75, 5: 0.83, 10: 0.90}


def normalised_score(value: float, references: dict[str, float] | None) -> float | None:
    """100 (S - random) / (expert - random), the field's convention (D4RL; OMAR); None without references."""
    if references is None or references["expert"] == references["random"]:
        return None
    return 100 * (value - references["random"]) / (references["expert"] - references["random"])


@dataclass(frozen=True)
class Evaluation:
    """One run's scores. Returns are means over agents of an episode's undiscounted sum."""

    run: str
    dataset: str
    env: str
    learner: str
    rewards: str
    steps: int
    episodes: int  # for each seed
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]  # mean return of each seed
    agent_return: tuple[float, ...] | None  # per agent, mean over seeds; None where only the team's is known
    team_return: float
    interval: Interval
    normalised: float | None
    normalised_interval: tuple[float, float] | None
    agreement: dict[str, float | None] | None  # of the rewards trained on with the truth
    behaviour_return: float | None
    behaviour_normalised: float | None
    references: dict[str, float] | None  # what is normalised against
    win_rate: tuple[float, ...] | None = (
        None  # share of episodes won, of each seed; None where nothing can be won
    )

    def to_json(self) -> dict[str, Any]:
        """For `--json` and evaluation.json."""
        return asdict(self)


@dataclass(frozen=True)
class EvaluationReport:
    """Several evaluations beside each other."""

    evaluations: tuple[Evaluation, ...]

    @property
    def title(self) -> str:
        """What the table shows."""
        first = self.evaluations[0]
        return f"{', '.join(self._datasets)} · {first.episodes} episodes a seed"

    def columns(self) -> list[str]:
        """Header of the table."""
        dataset = ["dataset"] if len(self._datasets) > 1 else []
        won = ["won"] if self._winnable else []
        return [*dataset, "learner", "rewards", "return [95 % CI]", "score", *won, "agreement", "seeds"]

    @property
    def _datasets(self) -> list[str]:
        return sorted({evaluation.dataset for evaluation in self.evaluations})

    @property
    def _winnable(self) -> bool:
        return any(evaluation.win_rate is not None for evaluation in self.evaluations)

    def rows(self) -> list[list[str]]:
        """The behaviour of each dataset, then the runs, best first."""
        rows = []
        for dataset in self._datasets:
            here = [evaluation for evaluation in self.evaluations if evaluation.dataset == dataset]
            named = [dataset] if len(self._datasets) > 1 else []
            if here[0].behaviour_return is not None:
                known = [f"{here[0].behaviour_return:.1f}", _number(here[0].behaviour_normalised)]
                row = [*named, "(behaviour)", "", *known]
                rows.append([*row, *[""] * (len(self.columns()) - len(row))])
            for evaluation in sorted(here, key=lambda one: one.interval.mean, reverse=True):
                agreement = evaluation.agreement or {}
                rows.append(
                    [
                        *named,
                        evaluation.learner,
                        evaluation.rewards,
                        evaluation.interval.text(),
                        _number(evaluation.normalised),
                        *([_percent(evaluation.win_rate)] if self._winnable else []),
                        _number(agreement.get("pearson"), 3),
                        str(len(evaluation.seeds)),
                    ]
                )
        return rows

    def notes(self) -> list[str]:
        """What a reader must know to read the table rightly."""
        notes = [
            "return: mean over the agents of an episode's summed reward; score: normalised, 0 = random, "
            "100 = expert; agreement: correlation of the rewards trained on with each agent's true reward"
        ]
        if any(one.interval.over == "episodes" for one in self.evaluations):
            notes.append(
                "one seed: the interval is over its episodes; train with --seeds 5 to see how seeds differ"
            )
        if any(
            one.interval.over == "seeds" and one.interval.count < max(COVERED) for one in self.evaluations
        ):
            covered = ", ".join(f"{share:.0%} with {seeds}" for seeds, share in COVERED.items())
            notes.append(
                f"an interval over so few seeds is too sure: it holds the true mean in {covered} of them"
            )
        unknown = sorted({one.env for one in self.evaluations if one.normalised is None})
        if unknown:
            notes.append(
                f"no reference returns are known for {', '.join(unknown)} with these options: no normalised score"
            )
        return notes

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"runs": [evaluation.to_json() for evaluation in self.evaluations]}


def _percent(per_seed: Sequence[float] | None) -> str:
    return "-" if per_seed is None else f"{sum(per_seed) / len(per_seed):.0%}"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def runs_to_evaluate(runs: Sequence[str], dataset: str | None) -> list[RunFolder]:
    """The runs named, or every complete run on `dataset`, or the latest run."""
    if runs and dataset is not None:
        raise UsageError("--run and --dataset: give one of the two")
    if dataset is None:
        found = [find_run(name) for name in runs] if runs else [find_run(None)]
        return list({run.folder.resolve(): run for run in found}.values())
    source = find_dataset(dataset)
    found = [
        run
        for run in list_runs()
        if run.status == "complete" and run.record["dataset"]["sha256"] == source.card.sha256
    ]
    if not found:
        raise UsageError(f"no complete run on {source.card.id}: offmarl train --dataset {source.card.id}")
    return found


def evaluate_runs(
    runs: Sequence[RunFolder],
    episodes: int,
    seed: int,
    env_options: dict[str, Any],
    out: Path | None,
    device: str,
    reporter: Reporter,
) -> EvaluationReport:
    """Evaluate each run; results are written into the run's folder, or into `out`.

    Raises `UsageError` where two of them would be written to one file.
    """
    variant = "".join(f"-{key}-{value}" for key, value in sorted(env_options.items()))
    targets: dict[Path, RunFolder] = {}
    for run in runs:
        name = "evaluation" if out is None else run.id.replace("/", "_")
        target = (run.folder if out is None else out) / f"{name}{variant}.json"
        if target in targets:
            raise UsageError(
                f"--out: the scores of {targets[target].folder} and {run.folder} would both be {target}: without --out "
                "each goes into the folder of its run"
            )
        targets[target] = run
    evaluations = []
    for target, run in targets.items():
        evaluation = evaluate_run(run, episodes, seed, env_options, device, reporter)
        record = {"created": datetime.now(UTC).isoformat(), "seed": seed, "env_options": env_options}
        write_json(target, {**evaluation.to_json(), **record})
        evaluations.append(evaluation)
    return EvaluationReport(tuple(evaluations))


def evaluate_run(
    run: RunFolder, episodes: int, seed: int, env_options: dict[str, Any], device: str, reporter: Reporter
) -> Evaluation:
    """Play `episodes` episodes with every seed's policy, all at once."""
    with reporter.bar(f"evaluate {run.id}") as progress:
        evaluation = _evaluate(run, episodes, seed, env_options, device, progress)
    say_if_unfinished(run, evaluation.steps, reporter)
    return evaluation


def say_if_unfinished(run: RunFolder, steps: int, reporter: Reporter) -> None:
    """Tell that what is judged of a run that was interrupted, goes on or diverged is its checkpoint after `steps`."""
    if run.status != "complete":
        reporter.say(f"run {run.id} is not complete ({run.status}): judged is its checkpoint of step {steps}")


def _evaluate(
    run: RunFolder, episodes: int, seed: int, env_options: dict[str, Any], device: str, progress: Progress
) -> Evaluation:
    policy = load_policy(run, device)
    spec: EnvSpec = policy.spec
    seeds = policy.n_seeds
    options = {**spec.options, **env_options}
    with task_of(spec, seeds * episodes, options, device) as env:
        policy = policy.on(env.spec)
        steps_done = [0]

        def on_step() -> None:
            steps_done[0] += 1
            progress(steps_done[0], spec.horizon)

        returns = rollout(env, policy, seed, on_step)
    by_seed = returns.mean_agent.view(seeds, episodes)  # [S, episodes]
    won = None if returns.won is None else returns.won.view(seeds, episodes).double().mean(1)  # [S]
    per_seed = by_seed.mean(1).tolist()
    interval = (
        bootstrap_interval(per_seed, "seeds")
        if seeds > 1
        else bootstrap_interval(by_seed[0].cpu().numpy(), "episodes")
    )
    source = run.record["dataset"]
    references = (
        reference_returns(env.spec) if env_options else source.get("references") or reference_returns(spec)
    )
    behaviour = None if env_options else source.get("return_mean")
    normalised = normalised_score(interval.mean, references)
    bounds = None
    if interval.low is not None and interval.high is not None and normalised is not None:
        low, high = normalised_score(interval.low, references), normalised_score(interval.high, references)
        assert low is not None
        assert high is not None
        bounds = (low, high)
    return Evaluation(
        run=run.id,
        dataset=source["id"],
        env=spec.id,
        learner=run.record["learner"],
        rewards=run.record["rewards"],
        steps=policy.steps,
        episodes=episodes,
        seeds=tuple(run.record["seeds"]),
        per_seed=tuple(per_seed),
        agent_return=None if returns.agent is None else tuple(returns.agent.mean(0).tolist()),
        team_return=float(returns.team.mean()),
        interval=interval,
        normalised=normalised,
        normalised_interval=bounds,
        agreement=_agreement(run.record),
        behaviour_return=behaviour,
        behaviour_normalised=None if behaviour is None else normalised_score(behaviour, references),
        references=references,
        win_rate=None if won is None else tuple(won.tolist()),
    )


def _agreement(record: Mapping[str, Any]) -> dict[str, float | None] | None:
    """Agreement of the rewards trained on with the truth, where both are still there and the dataset knows it."""
    source, rewards = record["dataset"], record["rewards"]
    try:
        dataset = find_dataset(Path(source["path"]))
        if dataset.card.sha256 != source["sha256"]:
            return None
        if rewards_digest(dataset, rewards) != record.get("rewards_sha256"):
            return None  # another decomposition of that name, or of a run that does not say which it was
        return agreement(dataset, rewards)
    except OffmarlError:
        return None
