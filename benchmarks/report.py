"""What every benchmark measures and prints: rows of offmarl against a peer, as lines or as JSON."""

import argparse
import json
from collections.abc import Mapping
from typing import TypedDict


class Row(TypedDict):
    """Both sides in `unit`; a `ratio` above 1 means that offmarl is faster."""

    ours: float
    peer: float
    ratio: float
    unit: str


def row_of_rates(ours: float, peer: float, unit: str) -> Row:
    """Work done in a time: more is better."""
    return {"ours": ours, "peer": peer, "ratio": ours / peer, "unit": unit}


def row_of_times(ours: float, peer: float, unit: str) -> Row:
    """Time taken for some work: less is better."""
    return {"ours": ours, "peer": peer, "ratio": peer / ours, "unit": unit}


def parser_of(description: str) -> argparse.ArgumentParser:
    """The flags that all benchmarks have; `description` is their docstring, its first line is shown."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def print_rows(rows: Mapping[str, Row], as_json: bool, need_d3rlpy: bool = False) -> None:
    """Print the rows; with `need_d3rlpy`, and none of them against it, how to get those that are missing."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max(len(name) for name in rows)
    for name, row in rows.items():
        ours, peer = (
            f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" for value in (row["ours"], row["peer"])
        )
        print(
            f"{name:{width}s}  {ours:>12s} against {peer:>12s} {row['unit']:10s}  ratio {row['ratio']:9.2f}"
        )
    if need_d3rlpy and not any("d3rlpy" in name for name in rows):
        print("d3rlpy is not installed: its rows were left out (pip install 'offmarl[d3rlpy]')")
