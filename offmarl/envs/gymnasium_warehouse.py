"""The robotic warehouse, made from plain values; runs inside worker processes."""

from typing import Any

from rware.warehouse import RewardType, Warehouse


def warehouse(reward_type: str, **arguments: Any) -> Warehouse:
    """A warehouse without messages that never ends by itself; `reward_type` is a name of rware's enumeration."""
    return Warehouse(
        reward_type=RewardType[reward_type.upper()],
        msg_bits=0,
        max_inactivity_steps=None,
        max_steps=None,
        **arguments,
    )
