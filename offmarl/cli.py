"""The commands: parse, call one function of a stage, print."""

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from offmarl import __version__
from offmarl.cli_commands import STOPPED, Commands, OneScreen, Quiet, StoppedError
from offmarl.cli_credit import credit_app, print_credit
from offmarl.cli_data import data_app, print_dataset
from offmarl.cli_doctor import doctor
from offmarl.cli_ope import EstimatorOption, evaluate_offline, select
from offmarl.cli_options import (
    DatasetOption,
    Device,
    Json,
    Out,
    Overwrite,
    RunsOn,
    Seed,
    Settings,
    check_figure,
    command_line,
    say_which,
    usable_device,
)
from offmarl.cli_report import report
from offmarl.cli_tournament import tournament
from offmarl.cli_watch import watch
from offmarl.console import Terminal
from offmarl.credit.registry import DECOMPOSERS
from offmarl.errors import OffmarlError, UsageError
from offmarl.settings import parse_settings

app = Commands(
    name="offmarl",
    cls=OneScreen,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(credit_app, name="credit")

EPISODES = 200  # played for each seed
TORCH_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory")  # on the CPU; on a GPU


def _version(value: bool) -> None:
    if value:
        print(f"offmarl {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Find out who earned a team's reward, and learn from what was logged."""


@app.add(
    example="offmarl collect --env mpe_targets --free-riders 4",
    stopped="finished episodes are kept, and the same command goes on from there",
)
def collect(
    env: Annotated[str, typer.Option(help="Task, as `offmarl envs` lists it.")],
    quality: Annotated[
        str, typer.Option(help="random, medium-replay, medium, expert or scripted.")
    ] = "expert",
    steps: Annotated[int | None, typer.Option(min=1, help="Transitions to collect.")] = None,
    num_envs: Annotated[int | None, typer.Option(min=1, help="Copies of the task stepped at once.")] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="FILE", help="Act by this policy file or run instead of --quality.")
    ] = None,
    free_riders: Annotated[
        int, typer.Option(min=0, help="Agents, redrawn every episode, that act at random.")
    ] = 0,
    backend: Annotated[
        str, typer.Option(help="offmarl, pettingzoo, pettingzoo:module.path, gymnasium:module:Class")
    ] = "offmarl",
    name: Annotated[
        str | None, typer.Option(metavar="ID", help="Id of the dataset, namespace/name-vN.")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Record episodes; train a behaviour policy if it is missing."""
    from offmarl.behaviour.collection import CollectRequest, collect_dataset

    terminal = Terminal(as_json)
    chosen = parse_settings(settings or [], ["env", "behaviour"])
    request = CollectRequest(
        env=env,
        quality=quality,
        transitions=steps,
        num_envs=num_envs,
        policy=policy,
        free_riders=free_riders,
        backend=backend,
        name=name,
        seed=seed,
        out=out,
        overwrite=overwrite,
        device=usable_device(device),
        env_options=chosen["env"],
        behaviour=chosen["behaviour"],
        command=command_line(),
    )
    dataset = collect_dataset(request, terminal)
    print_dataset(terminal, dataset)
    where = dataset.card.id if out is None else str(dataset.folder)
    terminal.line(f"wrote {dataset.folder}")
    opposed = dataset.spec.opposed  # both sides' rewards add up to no team's
    following = (
        f"train --dataset {where} --learner cmfq --rewards true"
        if opposed
        else f"decompose --dataset {where}"
    )
    terminal.line(f"next: offmarl {following}")


@app.add(example="offmarl decompose --dataset mpe_targets/expert-free-riders-4-v0 --method macca")
def decompose(
    dataset: DatasetOption = None,
    method: Annotated[str, typer.Option(help=f"{', '.join(DECOMPOSERS)}, or your module:Class.")] = "macca",
    name: Annotated[str | None, typer.Option(help="Name of the result; the method's if not given.")] = None,
    shared_reward: Annotated[
        bool, typer.Option("--shared-reward", help="Declare that all agents are paid the same: R/N, exactly.")
    ] = False,
    owner: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML or JSON: whose a variable (or pattern) is, an agent or nobody."
        ),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Find out who earned the team's reward, and how sure that is."""
    from offmarl.credit.owner import read_owner
    from offmarl.credit.registry import require_setting
    from offmarl.credit.relabel import decompose as decompose_dataset
    from offmarl.data.catalog import find_dataset

    terminal = Terminal(as_json)
    values = parse_settings(settings or [], ["credit"])["credit"]
    if shared_reward:
        require_setting(method, "shared_reward", "--shared-reward")
        values["shared_reward"] = True
    if owner is not None:
        require_setting(method, "owner", "--owner")
        values["owner"] = read_owner(owner)
    source = find_dataset(dataset)
    say_which(terminal, "dataset", dataset, source.card.id)
    with terminal.stages() as progress:
        report = decompose_dataset(
            source,
            method=method,
            values=values,
            seed=seed,
            name=name,
            out=out,
            overwrite=overwrite,
            progress=progress,
            device=usable_device(device),
        )
    print_credit(terminal, source, report)
    terminal.line(f"wrote {report.path} in {report.seconds:.0f} s")
    again = dataset or source.card.id
    terminal.line(f"next: offmarl train --dataset {again} --learner cql --rewards {report.name}")


@app.add(
    example="offmarl train --learner td3bc --rewards macca --set learner.bc_weight=0.4",
    stopped="the same command with --resume goes on from the last checkpoint",
)
def train(
    dataset: DatasetOption = None,
    learner: Annotated[
        str,
        typer.Option(
            help="bc, td3bc, cql, qmix_cql, omar, icq, iql, cfcql; of MAgent idqn, mfq, attention_mfq, random_mfq, "
            "cmfq; d3rlpy:NAME, or your module:Class. The form follows the dataset."
        ),
    ] = "cql",
    rewards: Annotated[
        str, typer.Option(help="team, mean, true, or a decomposition: its name or file.")
    ] = "macca",
    steps: Annotated[int | None, typer.Option(min=1, help="Joint updates.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train this many seeds at once: seed, seed+1, ...")] = 1,
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Play every N updates too: learning curves.")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Learn policies from a dataset, on the rewards you choose."""
    from offmarl.data.catalog import find_dataset
    from offmarl.evaluation.curve import returns_along
    from offmarl.training.offline import TrainRequest, train_offline

    terminal = Terminal(as_json)
    chosen = parse_settings(settings or [], ["learner", "train"])
    if steps is not None:
        chosen["train"]["steps"] = steps
    source = find_dataset(dataset)
    say_which(terminal, "dataset", dataset, source.card.id)
    request = TrainRequest(
        learner=learner,
        rewards=rewards,
        seeds=tuple(range(seed, seed + seeds)),
        learner_settings=chosen["learner"],
        train_settings=chosen["train"],
        out=out,
        resume=resume,
        overwrite=overwrite,
        device=usable_device(device),
        command=command_line(),
    )
    with returns_along(source, seeds, evaluate_every, request.device) as request.along:
        run = train_offline(source, request, terminal)
    terminal.table(
        f"last metrics, mean over {seeds} seed{'s' if seeds > 1 else ''}",
        ["metric", "value"],
        [[key, f"{value:.4g}"] for key, value in run.summary.items()],
    )
    terminal.json({"run": run.id, "folder": str(run.folder), "status": run.status, "metrics": run.summary})
    terminal.line(f"wrote {run.folder}")
    terminal.line(f"next: offmarl evaluate --run {run.id if out is None else run.folder}")


@app.add(
    example="offmarl evaluate --dataset mpe_targets/expert-free-riders-4-v0 --episodes 100",
    stopped="runs that were scored keep their scores; the same command measures all of them anew",
)
def evaluate(
    run: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="ID|PATH", help="Run; repeatable; the latest if not given."),
    ] = None,
    dataset: RunsOn = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Episodes for each seed.", show_default=str(EPISODES))
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the scores too: .png, .pdf or .svg.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Play nothing: estimate the returns from the runs' data.")
    ] = False,
    estimator: EstimatorOption = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = "auto",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Score runs in their environment, with intervals."""
    from offmarl.evaluation.scores import evaluate_runs, runs_to_evaluate

    terminal = Terminal(as_json)
    if offline:
        if figure is not None:
            raise UsageError("--figure draws scores of play: without --offline, or offmarl select --figure")
        if episodes is not None:
            raise UsageError("--episodes are played, and --offline plays nothing: give one of them")
        evaluate_offline(terminal, run or [], dataset, estimator, seed, out, device, settings or [])
        return
    if estimator is not None:
        raise UsageError("--estimator is for --offline; without it policies are played")
    check_figure(figure)
    env_options = parse_settings(settings or [], ["env"])["env"]
    runs = runs_to_evaluate(run or [], dataset)
    if not run and dataset is None:
        terminal.say(f"run: {runs[0].id} (the latest; choose another with --run)")
    report = evaluate_runs(
        runs, episodes or EPISODES, seed, env_options, out, usable_device(device), terminal
    )
    terminal.table(report.title, report.columns(), report.rows())
    for note in report.notes():
        terminal.line(note)
    if any(one.spec.opposed for one in runs):
        terminal.line(
            "both sides were played by the policy itself: wins say nothing of its strength, offmarl tournament does"
        )
    if figure is not None:
        from offmarl.report.figures import draw_scores

        draw_scores(report, figure)
        terminal.line(f"wrote {figure}")
    terminal.json(report.to_json())


@app.add(example="offmarl export --out policy")
def export(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Id or path of a run; the latest if not given.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="offmarl, torchscript or onnx.")] = "offmarl",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Which of the run's seeds; its first if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write here instead of ./policy.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a trained policy into a folder that works on its own."""
    from offmarl.training.export import export_run
    from offmarl.training.run import find_run

    terminal = Terminal(as_json)
    source, folder = find_run(run), out or Path("policy")
    say_which(terminal, "run", run, source.id, argument=True)
    with terminal.bar("export"):
        about = export_run(source, form, folder, seed, overwrite)
    terminal.line(f"seed {about['seed']} after {about['steps']:,} updates; acts as the run does, to 1e-5")
    terminal.line(f"wrote {folder}")
    terminal.line(f"next: {about['load']}")
    terminal.json({"folder": str(folder), **about})


@app.add(
    example="offmarl bench recipes/sharing.yaml --dry-run",
    stopped="finished cells are kept, and the same command goes on from there",
)
def bench(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, e.g. recipes/credit.yaml.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Results; by default under $OFFMARL_HOME/benches.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, each on one thread.")] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only these cells, e.g. method=macca,mean; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run nothing: say what is to do, and show what is there.")
    ] = False,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write all tables of the recipe as Markdown.")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of decompositions: draw skill against the number of transitions."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data and credit that cells share.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure finished cells again.")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure a grid of experiments; what is there is not repeated."""
    from offmarl.atomic import write_text
    from offmarl.recipes.bench import bench_folder, duration, read_results, run_bench
    from offmarl.recipes.engine import ProcessEngine
    from offmarl.recipes.recipe import load_recipe

    terminal = Terminal(as_json)
    check_figure(figure)
    plan = load_recipe(recipe)
    folder = out or bench_folder(plan.name)
    report = read_results(plan, folder, only or [])
    if dry_run:
        terminal.table(plan.title, ["block", "cells", "done", "failed", "open"], report.overview())
        left = report.seconds_left(jobs)
        terminal.line("no cell is measured yet" if left is None else f"about {duration(left)} left")
    else:
        engine = ProcessEngine(jobs)
        try:
            report = run_bench(
                plan, folder, engine, only or [], usable_device(device), keep, overwrite, terminal
            )
        finally:
            engine.close()
    shown = report.table()
    if shown.rows:
        terminal.table(shown.title, shown.columns, shown.rows)
        terminal.line(shown.note)
    for line in report.failure_lines():
        terminal.problem(f"failed: {line}")
    if table is not None:
        write_text(table, report.markdown(command_line()))
        terminal.line(f"wrote {table}")
    if figure is not None:
        from offmarl.report.credit_figures import draw_skill_curve

        draw_skill_curve(report.skill_rows(), figure)
        terminal.line(f"wrote {figure}")
    terminal.json(report.to_json())
    terminal.line(f"{report.count('done')} of {len(report.results)} cells are measured, in {folder}")
    if report.failures and not dry_run:
        raise typer.Exit(1)


app.add(
    example="offmarl report --html page.html",
    stopped="files that it said it wrote are complete; the same command writes all of them anew",
)(report)
app.add(example="offmarl watch mpe_targets/expert-free-riders-4-v0 --out episode.gif")(watch)
app.add(
    example="offmarl tournament random charge --agents 16,64 --games 10",
    stopped="pairs that were played are kept, and the same command goes on from there",
)(tournament)


app.add(
    example="offmarl select --dataset mpe_targets/expert-free-riders-4-v0",
    stopped="runs that were judged are not judged again; the same command goes on with the others",
)(select)


@app.add(example="offmarl envs")
def envs(as_json: Json = False) -> None:
    """List the tasks that data can be collected from."""
    from offmarl.envs.registry import listing

    terminal = Terminal(as_json)
    entries = listing()
    terminal.table(
        "environments",
        ["id", "agents", "actions", "what"],
        [[entry.id, str(entry.agents), entry.actions, entry.title] for entry in entries],
    )
    terminal.json({"envs": [vars(entry) for entry in entries]})
    terminal.line("any PettingZoo ParallelEnv: --env NAME --backend pettingzoo:module.path")
    terminal.line("any Gymnasium environment of tuples: --env NAME --backend gymnasium:module:Class")


app.add(example="offmarl doctor")(doctor)


def main() -> None:
    """Run the command line; errors are one line on standard error."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of ASCII gets ? for ±
    try:
        sys.path.append(_current_folder())  # where people keep modules of their own that they name
        code = app(prog_name="offmarl", standalone_mode=False)
        if code == STOPPED:  # the parser turns Ctrl-C into this code
            raise StoppedError("stopped")
    except OffmarlError as error:
        print(f"offmarl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"offmarl: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        _exit_if_usage(error)
        _exit_if_out_of_memory(error)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _current_folder() -> str:
    """Where the command was given. Raises `UsageError` where somebody has removed it meanwhile."""
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder does not exist any more: cd to another") from error


def _exit_if_usage(error: Exception) -> None:
    """Wrong flags as the parser reports them: its own message, exit code 2."""
    show = getattr(error, "show", None)
    if callable(show):
        show()
        sys.exit(getattr(error, "exit_code", 2))


def _exit_if_out_of_memory(error: Exception) -> None:
    """NumPy and h5py raise a `MemoryError`, PyTorch a `RuntimeError` that only its text tells from others."""
    of_torch = isinstance(error, RuntimeError) and any(words in str(error) for words in TORCH_OUT_OF_MEMORY)
    if isinstance(error, MemoryError) or of_torch:
        print(
            "offmarl: the memory does not suffice: ask for less at once (collect: --num-envs; train: "
            f"--set train.batch_size, --seeds). {str(error).splitlines()[0] if str(error) else ''}".rstrip(),
            file=sys.stderr,
        )
        sys.exit(1)
