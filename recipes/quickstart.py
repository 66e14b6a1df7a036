"""The first run: who earned the team's reward, and does it matter to know?

Eight agents each have a landmark of their own to reach; only the team's reward is logged, and in every
episode half of the agents idle at random. This script types the commands that a user would type, two at a
time, and reads nothing but what they print.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

DATASET = "mpe_targets/expert-free-riders-4-v0"
REWARDS = ("team", "mean", "macca", "true")
LEARNERS = ("td3bc", "cql")
console = Console(highlight=False, soft_wrap=True)


def offmarl(*arguments: str) -> dict:
    """Run one command of the public command line and return what it prints with --json."""
    typed = " ".join(arguments)
    console.print(f"[bold]$ offmarl {typed}[/bold]")
    start = time.monotonic()
    executable = str(Path(sys.executable).parent / "offmarl")
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # two commands run at a time, one core each
    done = subprocess.run(
        [executable, *arguments, "--json"], capture_output=True, text=True, env={**os.environ, **one_thread}
    )
    if done.returncode:
        console.print(done.stderr, style="red", markup=False)
        sys.exit(f"offmarl {typed}: exit code {done.returncode}")
    console.print(f"  [dim]{time.monotonic() - start:5.1f} s  offmarl {typed}[/dim]")
    return json.loads(done.stdout)


def main() -> None:
    """Collect, decompose, train, evaluate, and say in one sentence what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path(".quickstart"), help="where everything is written")
    parser.add_argument("--transitions", type=int, default=100_000)
    parser.add_argument("--updates", type=int, default=1_500)
    arguments = parser.parse_args()
    home = arguments.home.resolve()
    shutil.rmtree(home, ignore_errors=True)
    os.environ["OFFMARL_HOME"] = str(home)
    console.print(f"Everything is written to {home} (emptied first); OFFMARL_HOME={home}\n")

    start = time.monotonic()
    collected = offmarl(
        "collect", "--env", "mpe_targets", "--free-riders", "4", "--steps", str(arguments.transitions)
    )
    assert collected["id"] == DATASET, collected["id"]

    def train(learner: str, rewards: str) -> dict:
        steps = str(arguments.updates)
        return offmarl(
            "train", "--dataset", DATASET, "--learner", learner, "--rewards", rewards, "--steps", steps
        )

    with ThreadPoolExecutor(max_workers=2) as pool:
        decomposition: Future[dict] = pool.submit(offmarl, "decompose", "--dataset", DATASET)
        known = [
            ("bc", "mean"),
            *((learner, rewards) for rewards in REWARDS if rewards != "macca" for learner in LEARNERS),
        ]
        runs = [pool.submit(train, *pair) for pair in known]
        credit = decomposition.result()
        runs += [pool.submit(train, learner, "macca") for learner in LEARNERS]
        for run in runs:
            run.result()
    report = offmarl("evaluate", "--dataset", DATASET)
    console.print()
    subprocess.run([str(Path(sys.executable).parent / "offmarl"), "data", "info", DATASET], check=True)
    subprocess.run(
        [str(Path(sys.executable).parent / "offmarl"), "evaluate", "--dataset", DATASET], check=True
    )
    console.print()
    console.print(conclusion(report, credit), style="bold")
    console.print(
        f"\n{time.monotonic() - start:.0f} s for the whole pipeline. Look around with: export OFFMARL_HOME={home}"
    )


def conclusion(report: dict, credit: dict) -> str:
    """One sentence made of the numbers in the table."""
    scores = {(run["learner"], run["rewards"]): run["normalised"] for run in report["runs"]}
    behaviour = report["runs"][0]["behaviour_normalised"]
    team = max(scores[learner, rewards] for learner in LEARNERS for rewards in ("team", "mean"))
    macca = max(scores[learner, "macca"] for learner in LEARNERS)
    true = max(scores[learner, "true"] for learner in LEARNERS)
    recovered = credit["truth"]["pearson"]
    seen = (
        f"logs of teams in which half the agents idle score {behaviour:.0f}, and learning from the team's reward "
        f"gets no further than {team:.0f}"
    )
    if macca > team + 10:
        return (
            f"What you just saw: {seen}; MACCA found out from the same logs who earned what (correlation with the "
            f"truth {recovered:.2f}), and policies trained on that reach {macca:.0f}, on the true rewards {true:.0f}."
        )
    return (
        f"What you just saw: {seen}; on MACCA's rewards (correlation with the truth {recovered:.2f}) it is "
        f"{macca:.0f}, on the true rewards {true:.0f}: this time knowing who earned what did not decide."
    )


if __name__ == "__main__":
    main()
