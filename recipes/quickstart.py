"""The first run: who earned the team's reward, and does it matter to know?

Eight agents each have a landmark of their own to reach; only the team's reward is logged, and in every
episode half of the agents idle at random. This script types the commands that a user would type, two at a
time, and reads nothing but the files they write.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

DATASET = "mpe_targets/expert-free-riders-4-v0"
REWARDS = ("team", "mean", "macca", "true")
# Enough updates to tell the rewards apart within minutes; every reward gets the same.
LEARNERS = {
    "td3bc": "--steps 1000 --set train.batch_size=256 --set learner.bc_weight=0.4",  # TD3+BC, alpha 2.5
    "cql": "--steps 300 --set train.batch_size=256",
}
IMITATION = "--learner bc --rewards team --steps 1000 --set train.batch_size=256"
MARKER = ".made-by-quickstart"
OFFMARL = str(Path(sys.executable).parent / "offmarl")
console = Console(highlight=False, soft_wrap=True)


def offmarl(command: str) -> str:
    """Run one command on one thread and return what it prints."""
    console.print(f"[bold]$ offmarl {command}[/bold]")
    start = time.monotonic()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "COLUMNS": str(console.width),
    }
    done = subprocess.run([OFFMARL, *command.split()], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"offmarl {command}: exit code {done.returncode}\n{done.stderr}")
    console.print(f"  [dim]{time.monotonic() - start:.0f} s: {command}[/dim]")
    return done.stdout


def main() -> None:
    """Collect, decompose, train, evaluate, and say in one sentence what was seen."""
    parser = argparse.ArgumentParser(description="The whole pipeline on a small real dataset.")
    parser.add_argument("--home", type=Path, default=Path(".quickstart"), help="where everything is written")
    home = parser.parse_args().home.resolve()
    if home.exists() and not (home / MARKER).exists():
        sys.exit(f"{home} exists and was not made by the quickstart: choose another --home")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / MARKER).touch()
    os.environ["OFFMARL_HOME"] = str(home)
    console.print(f"Everything is written below {home}, which starts empty.\n")
    start = time.monotonic()

    console.print(offmarl("collect --env mpe_targets --free-riders 4 --steps 100000"), markup=False)
    with ThreadPoolExecutor(max_workers=2) as pool:
        decomposition = pool.submit(offmarl, f"decompose --dataset {DATASET}")
        runs = [pool.submit(offmarl, f"train --dataset {DATASET} {IMITATION}")]
        runs += [
            pool.submit(train, learner, rewards)
            for rewards in REWARDS
            if rewards != "macca"
            for learner in LEARNERS
        ]
        console.print(decomposition.result(), markup=False)
        runs += [pool.submit(train, learner, "macca") for learner in LEARNERS]
        for run in runs:
            run.result()
    console.print(
        offmarl(f"evaluate --dataset {DATASET} --episodes 100 --figure {home / 'scores.png'}"), markup=False
    )

    credit = json.loads((home / "datasets" / DATASET / "credit" / "macca.json").read_text())
    scores = [json.loads(path.read_text()) for path in (home / "runs").rglob("evaluation.json")]
    console.print(conclusion(scores, credit), style="bold")
    console.print(f"\n{time.monotonic() - start:.0f} s. Look around with: export OFFMARL_HOME={home}")


def train(learner: str, rewards: str) -> str:
    """One run of the table."""
    return offmarl(f"train --dataset {DATASET} --learner {learner} --rewards {rewards} {LEARNERS[learner]}")


def conclusion(evaluations: list[dict], credit: dict) -> str:
    """One sentence made of the numbers in the table."""
    scores = {(run["learner"], run["rewards"]): run["normalised"] for run in evaluations}
    behaviour = evaluations[0]["behaviour_normalised"]
    team = max(scores[learner, rewards] for learner in LEARNERS for rewards in ("team", "mean"))
    macca = max(scores[learner, "macca"] for learner in LEARNERS)
    true = max(scores[learner, "true"] for learner in LEARNERS)
    recovered = credit["truth"]["pearson"]
    seen = (
        f"logs of teams in which half the agents idle score {behaviour:.0f}, imitating them "
        f"{scores['bc', 'team']:.0f}, and learning from the team's reward gets no further than {team:.0f}"
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
