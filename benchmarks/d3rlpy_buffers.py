"""d3rlpy's replay buffers, which hold one agent each, filled from a table of all agents."""

from typing import Any

import numpy as np

from offmarl.data.table import Transitions


def d3rlpy_buffers(table: Transitions, episodes: int, horizon: int) -> list[Any]:
    """A buffer an agent with the first `episodes` of the table; `ImportError` where d3rlpy is not installed."""
    import d3rlpy

    rows = table.transition_rows[: episodes * horizon].numpy()
    return [
        d3rlpy.dataset.MDPDataset(
            observations=table.column("obs")[rows, agent].numpy(),
            actions=table.column("action")[rows, agent].numpy(),
            rewards=table.column("reward")[rows, agent, None].numpy(),
            terminals=np.zeros(len(rows)),
            timeouts=table.column("truncated")[rows].numpy(),
        )
        for agent in range(table.spec.n_agents)
    ]
