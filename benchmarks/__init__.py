"""Benchmarks and simulations: each is run by hand and its result stands in its docstring."""

import argparse
import os
import pathlib

VARIABLE = "SCALING_PUBLISHED_DATA"


def add_data(parser: argparse.ArgumentParser) -> None:
    """--data: the folder of published data sets; where it is not given, the environment variable says it."""
    given = os.environ.get(VARIABLE)
    said = f"folder of published data sets (default: {VARIABLE})"
    parser.add_argument("--data", type=pathlib.Path, default=given, required=given is None, help=said)
