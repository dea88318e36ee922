"""Rows left out on purpose: "C < 1e18 because too short to leave the warm-up".

The expression is read as Python's syntax and evaluated here, column by column: comparisons, also chained; and, or, not;
+ - * / **; `in [...]`; names of columns, numbers and strings. There is no call, attribute or index, and nothing is ever
executed. A column compares as text with a string, and as numbers with anything else. What is missing settles no
comparison, as in SQL: neither `loss < 3` nor `not loss < 3` leaves out a row that has no loss.
"""

import ast
import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from scaling.errors import InputError, nearest

BECAUSE = " because "
FORM = 'write "EXPRESSION because REASON", say "C < 1e18 because too short to leave the warm-up"'
ALLOWED = "use comparisons, and, or, not, + - * / **, `in [...]`, names of columns, numbers and strings"
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
COMPARISONS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """Which rows to leave out, and why. text: the expression as it was given."""

    text: str
    reason: str
    tree: ast.expr

    def rows(self, columns: Mapping[str, pd.Series]) -> np.ndarray:
        """The mask of the rows it leaves out, among R. Raises InputError for unknown columns and mixed-up types."""
        with np.errstate(all="ignore"):
            return _truth(self.tree, columns, f"--exclude={self.text!r}").true_R


def parse_exclusion(said: str) -> Exclusion:
    """Reads "EXPRESSION because REASON". Raises InputError where either is missing or it is not such an expression."""
    text, because, reason = (part.strip() for part in said.partition(BECAUSE))
    where = f"--exclude={said!r}"
    if not because or not text or not reason:
        raise InputError("no reason is given" if text else "no expression is given", where, FORM)
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"not an expression: {error.args[0]}", where, ALLOWED) from None
    except (RecursionError, MemoryError):
        raise InputError("too deeply nested an expression", "--exclude", ALLOWED) from None
    return Exclusion(text, reason, tree)


class _Truth(NamedTuple):
    """What a condition says of each row: true, false, or neither where a value is missing (Kleene's logic)."""

    true_R: np.ndarray
    false_R: np.ndarray


class _Value(NamedTuple):
    """One side of a comparison, as numbers (NaN: missing or not a number) and as text (empty: missing).

    text_R is None where there are only numbers. said: for messages.
    """

    number_R: np.ndarray
    text_R: np.ndarray | None
    said: str

    @property
    def is_text(self) -> bool:
        """Whether some of it has no other reading than as text."""
        return self.text_R is not None and bool(((self.text_R != "") & np.isnan(self.number_R)).any())


def _truth(node: ast.expr, columns: Mapping[str, pd.Series], where: str) -> _Truth:
    if isinstance(node, ast.BoolOp):
        parts = [_truth(value, columns, where) for value in node.values]
        true, false = (np.stack(part) for part in zip(*parts, strict=True))
        return _Truth(true.all(0), false.any(0)) if isinstance(node.op, ast.And) else _Truth(true.any(0), false.all(0))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _truth(node.operand, columns, where)
        return _Truth(inner.false_R, inner.true_R)
    if isinstance(node, ast.Compare):
        return _compare(node, columns, where)
    raise InputError(f"{ast.unparse(node)} is neither true nor false", where, "compare it with something")


def _compare(node: ast.Compare, columns: Mapping[str, pd.Series], where: str) -> _Truth:
    """a < b <= c is a < b and b <= c."""
    links = []
    left = _value(node.left, columns, where)
    for kind, right_node in zip(node.ops, node.comparators, strict=True):
        if isinstance(kind, ast.In | ast.NotIn):
            links.append(_among(left, right_node, isinstance(kind, ast.NotIn), columns, where))
            left = None  # nothing can be compared with a list again
            continue
        if type(kind) not in COMPARISONS or left is None:
            raise InputError(f"{ast.unparse(node)} is no comparison", where, ALLOWED)
        right = _value(right_node, columns, where)
        links.append(_link(COMPARISONS[type(kind)], left, right, where))
        left = right
    true, false = (np.stack(part) for part in zip(*links, strict=True))
    return _Truth(true.all(0), false.any(0))


def _among(left: _Value | None, node: ast.expr, negated: bool, columns: Mapping[str, pd.Series], where: str) -> _Truth:
    if left is None or not isinstance(node, ast.List | ast.Tuple) or not node.elts:
        raise InputError(f"{ast.unparse(node)} is not a list", where, "write `in [1e6, 2e6]` or `in ['a', 'b']`")
    links = [_link(operator.eq, left, _value(item, columns, where), where) for item in node.elts]
    true, false = (np.stack(part) for part in zip(*links, strict=True))
    found = _Truth(true.any(0), false.all(0))
    return _Truth(found.false_R, found.true_R) if negated else found


def _link(compare: Callable[[np.ndarray, np.ndarray], np.ndarray], left: _Value, right: _Value, where: str) -> _Truth:
    """One comparison: as text if either side is a string or a column of text, else as numbers."""
    if left.is_text or right.is_text or _is_string(left) or _is_string(right):
        for side, other in ((left, right), (right, left)):
            if side.text_R is None:
                raise InputError(f"{other.said} is text, and {side.said} is a number", where, "write text in quotes")
        true_R = compare(left.text_R, right.text_R).astype(bool)
        known_R = (left.text_R != "") & (right.text_R != "")
    else:
        true_R = compare(left.number_R, right.number_R)
        known_R = ~(np.isnan(left.number_R) | np.isnan(right.number_R))
    return _Truth(true_R & known_R, ~true_R & known_R)


def _is_string(value: _Value) -> bool:
    return value.said[:1] in ("'", '"')


def _value(node: ast.expr, columns: Mapping[str, pd.Series], where: str) -> _Value:
    said = ast.unparse(node)
    rows = len(next(iter(columns.values())))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _Value(np.full(rows, _float(node.value, where)), None, said)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        return _Value(np.full(rows, np.nan), np.full(rows, node.value, object), said)
    if isinstance(node, ast.Name):
        return _column(node.id, columns, where)
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        sides = [_number(side, columns, where) for side in (node.left, node.right)]
        return _Value(ARITHMETIC[type(node.op)](*sides), None, said)
    if isinstance(node, ast.UnaryOp) and type(node.op) in ARITHMETIC:
        return _Value(ARITHMETIC[type(node.op)](_number(node.operand, columns, where)), None, said)
    raise InputError(f"{said} is not allowed", where, ALLOWED)


def _float(value: float, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise InputError("a whole number is too large", where, "write it as 1e18, say") from None


def _number(node: ast.expr, columns: Mapping[str, pd.Series], where: str) -> np.ndarray:
    value = _value(node, columns, where)
    if value.is_text or _is_string(value):
        raise InputError(f"{value.said} is text: it cannot be calculated with", where)
    return value.number_R


def _column(name: str, columns: Mapping[str, pd.Series], where: str) -> _Value:
    if name not in columns:
        raise InputError(f"no column {name}", where, nearest(name, map(str, columns)))
    column = columns[name]
    text = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    number = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, copy=True)
    return _Value(number, text.to_numpy(object), name)
