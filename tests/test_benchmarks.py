"""The benchmarks print what they promise, and the bars that have a wide margin hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
BARS = {
    "environments": {
        "mpe_spread, 1,024 copies on one core, against a loop over mpe2": 100,
        "mpe_tag, 1,024 copies on one core, against a loop over mpe2": 100,
    },
    "discrete": {
        "qmix_cql, 32 episodes of 60 steps: against the plain loop, 1 threads": 2,
        "qmix_cql, 32 episodes of 20 to 60 steps with deaths: against the plain loop, 1 threads": 2,
        "cql, 1,024 steps, one network an agent: against d3rlpy's, 1 threads": 4,
        "cql, 1,024 steps, one network for all: against d3rlpy's, 1 threads": 4,
    },
    "mean_field": {
        "cmfq acts, 64 v 64, mlp: against 1,252 full passes": 4,
        "cmfq acts, 64 v 64, conv: against 1,252 full passes": 6,
        "cmfq acts, 400 v 400, mlp: against 9,796 full passes": 5,
        "cmfq acts, 400 v 400, conv: against 9,796 full passes": 8,
    },
    "data": {"load, against the raw bytes": 0.5, "batch of 1,024, against h5py fancy reads": 20},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BARS)
def test_a_benchmark_prints_ratios_above_its_bars(name):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    for row in rows.values():
        assert {"ours", "peer", "ratio", "unit"} <= row.keys()
    for row, least in BARS[name].items():
        assert rows[row]["ratio"] >= least, rows[row]
