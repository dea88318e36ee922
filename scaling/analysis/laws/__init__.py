"""Scaling laws as functions a fitter can use; see `law` for what a law is, `library` for those of the literature."""

from scaling.analysis.laws.law import COLUMN, Coordinate, Evaluation, Inputs, Law, hold, inputs_of
from scaling.analysis.laws.library import CHINCHILLA, LAWS, law_named
from scaling.analysis.laws.parameters import Logs, Parameter, define, exponent, level, positive, real, terms

__all__ = [
    "CHINCHILLA",
    "COLUMN",
    "LAWS",
    "Coordinate",
    "Evaluation",
    "Inputs",
    "Law",
    "Logs",
    "Parameter",
    "define",
    "exponent",
    "hold",
    "inputs_of",
    "law_named",
    "level",
    "positive",
    "real",
    "terms",
]
