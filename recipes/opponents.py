"""Train and ship the prey of the hunting tasks: `python recipes/opponents.py [mpe_tag ...]`"""

import sys

import torch

from offmarl.behaviour.opponents import train_prey
from offmarl.console import Terminal
from offmarl.envs.opponents.policy import shipped_weights

TASKS = ("mpe_tag", "mpe_tag_omar", "mpe_tag_individual", "mpe_world_omar")


def main() -> None:
    """Write one safetensors file a task into the package."""
    torch.set_num_threads(1)
    terminal = Terminal()
    for env_id in sys.argv[1:] or TASKS:
        prey, rows = train_prey(env_id, seed=0, reporter=terminal)
        path = shipped_weights(env_id, "prey")
        prey.save(path)
        terminal.table(f"{env_id}: prey by step of self-play", ["step", "random", "chase"], rows)
        terminal.line(f"wrote {path}")


if __name__ == "__main__":
    main()
