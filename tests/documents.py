"""Fenced blocks of Markdown pages, and their commands at a size that takes seconds."""

import re
import shlex
from dataclasses import dataclass

FENCE = re.compile(r'^```(\w*)(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SMALLER = {
    "collect": "--steps 2000 --num-envs 20 --set behaviour.steps=60 --set behaviour.warm_up=10 "
    "--set behaviour.checkpoint_every=20 --set behaviour.evaluation_episodes=8",
    "train": "--steps 4 --set train.tensorboard=false",  # with the usual batch: the data must suffice for it
    "evaluate": "--episodes 4",
    "select": "--set ope.steps=20 --set ope.clone_steps=20",
    "tournament": "--agents 4 --games 2",
}
SMALL_BATTLE = (
    "--steps 100 --num-envs 4 --set env.agents=4 --set env.horizon=20 --set behaviour.steps=20 "
    "--set behaviour.evaluation_episodes=2 --set behaviour.num_envs=2"
)
SMALLER_FITS = {
    "macca": "--set credit.structure_steps=40 --set credit.refit_steps=40 --set credit.pruning_factors=[]",
    "additive": "--set credit.steps=40",
}


@dataclass(frozen=True)
class Block:
    """What stands between two fences; with a title it is a file of that name."""

    language: str
    title: str
    code: str

    @property
    def commands(self) -> list[str]:
        """The lines of a block of commands, without comments."""
        lines = (shlex.join(shlex.split(line, comments=True)) for line in self.code.splitlines())
        return [line for line in lines if line]


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, all or those of one language."""
    found = [Block(*groups) for groups in FENCE.findall(page)]
    return [block for block in found if language in (None, block.language)]


def commands(page: str) -> list[str]:
    """Every command that a page tells people to type."""
    return [command for block in blocks(page, "bash") for command in block.commands]


def smaller(command: str) -> str:
    """The command with fewer steps; `--name` keeps the id that later commands of the page use."""
    subcommand = shlex.split(command)[1]
    if subcommand == "decompose":
        method = (re.search(r"--method (\S+)", command) or ["", "macca"])[1]
        return command if "--shared-reward" in command else f"{command} {SMALLER_FITS.get(method, '')}"
    if subcommand == "collect" and "--backend" in command:
        return command
    shrunk = f"{command} {SMALLER.get('select' if '--offline' in command else subcommand, '')}"
    if subcommand == "collect":
        env = re.search(r"--env (\S+)", command)[1]
        quality = (re.search(r"--quality (\S+)", command) or ["", "expert"])[1]
        riders = re.search(r"--free-riders (\d+)", command)
        agents = re.search(r"env\.agents=(\d+)", command)
        seed = re.search(r"--seed (\d+)", command)
        name = quality
        name += f"-free-riders-{riders[1]}" if riders else ""
        name += f"-agents-{agents[1]}" if agents else ""
        name += f"-seed-{seed[1]}" if seed else ""
        background = re.search(r"env\.background=(\w+)", command)
        name += f"-background-{background[1]}" if background else ""
        shrunk += f" --name {env}/{name}-v0"
        shrunk += f" {SMALL_BATTLE}" if env.startswith("magent_") else ""
    return shrunk
