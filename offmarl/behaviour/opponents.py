"""How the shipped prey are made (`recipes/opponents.py` runs it).

Predators and prey learn against each other. Left to itself that ends with a prey nobody catches (predators earn
151 after 750 steps and 5 after 6,000), and such a task teaches nothing; so the prey is frozen early: the last
checkpoint against which a simple chaser still earns three quarters of the most it earns against any.
"""

import torch

from offmarl.behaviour.online import Checkpoint, OnlineConfig, train_online
from offmarl.behaviour.qualities import mean_return
from offmarl.behaviour.random import RandomPolicy
from offmarl.behaviour.scripted import scripted_policy
from offmarl.envs.base import EnvSpec
from offmarl.envs.opponents.policy import NetworkPolicy
from offmarl.envs.registry import make
from offmarl.reporter import Reporter

SELF_PLAY = OnlineConfig(steps=1_500, checkpoint_every=100, share=False)
STILL_CAUGHT = 0.75
EPISODES = 128


def train_prey(env_id: str, seed: int, reporter: Reporter) -> tuple[NetworkPolicy, list[list[str]]]:
    """The frozen prey of a task, and a table of all candidates: step, returns of random and chasing predators."""
    options = {"background": "none"}
    copies = SELF_PLAY.num_envs
    with (
        make(env_id, copies, options=options) as env,
        make(env_id, copies, options=options) as evaluation_env,
    ):
        with reporter.bar(f"self-play {env_id}") as progress:
            checkpoints = train_online(env, evaluation_env, SELF_PLAY, seed, progress)
        candidates = [prey_network(checkpoint, env.spec) for checkpoint in checkpoints]
    rows, caught = [], []
    for checkpoint, prey in zip(checkpoints, candidates, strict=True):
        with make(env_id, EPISODES, opponent=prey) as hunt:
            by_chance = mean_return(hunt, RandomPolicy(hunt.spec), seed, EPISODES)
            caught.append(mean_return(hunt, scripted_policy(hunt.spec), seed, EPISODES))
        rows.append([str(checkpoint.step), f"{by_chance:.1f}", f"{caught[-1]:.1f}"])
    chosen = max(index for index, value in enumerate(caught) if value >= STILL_CAUGHT * max(caught))
    rows[chosen][0] += " *"
    return candidates[chosen], rows


def prey_network(checkpoint: Checkpoint, spec: EnvSpec) -> NetworkPolicy:
    """The last agent's policy out of a learner with one network for each agent, without padded inputs and outputs."""
    layers: list[tuple[torch.Tensor, torch.Tensor]] = []
    while f"policy.{len(layers)}.weight" in checkpoint.tensors:
        name = f"policy.{len(layers)}"
        weight = checkpoint.tensors[f"{name}.weight"][0, -1]  # [inputs, outputs]
        if not layers:
            weight = weight[: len(spec.obs_names[-1])]
        layers.append((weight.t().contiguous(), checkpoint.tensors[f"{name}.bias"][0, -1]))
    weight, bias = layers[-1]
    actions = len(spec.action_names[-1])
    layers[-1] = weight[:actions].contiguous(), bias[:actions].contiguous()
    return NetworkPolicy(layers)
