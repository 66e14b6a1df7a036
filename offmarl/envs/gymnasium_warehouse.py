"""The robotic warehouse, made from plain values; runs inside worker processes."""

from typing import Any

from rware.warehouse import RewardType, Warehouse

from offmarl.errors import UsageError


def warehouse(reward_type: str, **arguments: Any) -> Warehouse:
    """A warehouse without messages that never ends by itself; `reward_type` is a name of rware's enumeration.

    Raises `UsageError` for more agents than cells, or where no shelf is left to be asked for next.
    """
    made = Warehouse(
        reward_type=RewardType[reward_type.upper()],
        msg_bits=0,
        max_inactivity_steps=None,
        max_steps=None,
        **arguments,
    )
    cells, shelves = made.highways.size, int((made.highways == 0).sum())
    if made.n_agents > cells:
        raise UsageError(f"{made.n_agents} agents do not fit into a warehouse of {cells} cells")
    if made.request_queue_size >= shelves:
        raise UsageError(
            f"{made.request_queue_size} shelves asked for at once of {shelves} in the warehouse: "
            f"--set env.requests={shelves - 1} is the most"
        )
    return made
