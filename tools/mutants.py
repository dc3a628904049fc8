"""Small faults in a Python file, one at a time: what tests that hold it must notice.

Each is an edit of the text, so that all else of the file stays as it was. Not touched are
docstrings, imports, annotations, what is raised, printed or logged, and texts with a space in
them: words for people. Nor are f-strings, whose parts Python 3.11 does not place.
"""

import ast
import collections
import dataclasses
import hashlib
import math

_OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
_PAIRS = (
    ("argmax", "argmin"),
    ("sum", "mean"),
    ("SUM", "MEAN"),
    ("reduce_sum", "reduce_mean"),
    ("min", "max"),
    ("minimum", "maximum"),
    ("any", "all"),
    ("reduce_any", "reduce_all"),
    ("exp", "log"),
    ("softmax", "log_softmax"),
    ("zeros", "ones"),
    ("cos", "sin"),
)
_OTHER = dict(_PAIRS) | {b: a for a, b in _PAIRS}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
      path: of the file, in its repository.
      key: names it for as long as its lines stay as they are, wherever they move.
      line: where it is, counted from 1.
      before: the first line that it changes.
      after: the same, changed.
      source: the whole file, changed.
    """

    path: str
    key: str
    line: int
    before: str
    after: str
    source: str


class _Finder(ast.NodeVisitor):
    """Collects edits of a file: (first byte, byte behind the last, new text)."""

    def __init__(self, source):
        self.source, self.edits = source.encode(), {}
        self._lines = [0]
        for line in self.source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self.visit(ast.parse(source))

    def _start(self, node):
        return self._lines[node.lineno - 1] + node.col_offset

    def _end(self, node):
        return self._lines[node.end_lineno - 1] + node.end_col_offset

    def _edit(self, start, end, text):
        self.edits[start, end, text] = None

    def _replace(self, node, text):
        self._edit(self._start(node), self._end(node), text)

    def _text(self, node):
        return self.source[self._start(node) : self._end(node)].decode()

    def _swap_between(self, left, right, kind):
        """Another operator in the place of that between two operands."""
        old, new = _OPERATORS.get(kind, (None, None))
        start, end = self._end(left), self._start(right)
        gap = self.source[start:end].decode()
        if old and old in gap:
            start += len(gap[: gap.index(old)].encode())
            self._edit(start, start + len(old), new)

    def _negate(self, test):
        self._replace(test, f"(not ({self._text(test)}))")

    def visit_BinOp(self, node):
        self._swap_between(node.left, node.right, type(node.op))
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._swap_between(left, right, type(node.op))
        self.generic_visit(node)

    def visit_Compare(self, node):
        operands = [node.left, *node.comparators]
        for left, right, op in zip(operands, operands[1:], node.ops, strict=False):
            self._swap_between(left, right, type(op))
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        sign = 3 if isinstance(node.op, ast.Not) else 1
        self._edit(self._start(node), self._start(node) + sign, "")
        self.generic_visit(node)

    def visit_If(self, node):
        if ast.unparse(node.test) != "__name__ == '__main__'":
            self._negate(node.test)
            self.generic_visit(node)

    def visit_IfExp(self, node):
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node):
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node):
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            self._replace(node, str(not value))
        elif isinstance(value, (int, float)):
            for step in (1, -1):
                self._replace(node, f"({value + step!r})")
        elif isinstance(value, str) and " " not in value:
            self._replace(node, repr(_OTHER.get(value, f"XX{value}XX")))

    def visit_Name(self, node):
        if node.id in _OTHER and isinstance(node.ctx, ast.Load):
            self._replace(node, _OTHER[node.id])

    def visit_Attribute(self, node):
        if node.attr in _OTHER:
            end = self._end(node)
            self._edit(end - len(node.attr), end, _OTHER[node.attr])
        self.generic_visit(node)

    def visit_Return(self, node):
        if node.value and getattr(node.value, "value", 0) is not None:
            self._replace(node.value, "None")
        self.generic_visit(node)

    def visit_Assign(self, node):
        # Without a name that is bound anew, nearly every program fails at once.
        if any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets):
            self._replace(node, "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        self._swap_between(node.target, node.value, type(node.op))
        self._replace(node, "pass")
        self.generic_visit(node)

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if not self._for_people(node.value):
            self._replace(node, "pass")
        self.generic_visit(node)

    def visit_Call(self, node):
        if not self._for_people(node):
            self.generic_visit(node)

    def _for_people(self, node):
        """Whether a call says something to people."""
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        return called == "print" or called.startswith("logging.")

    def visit_Raise(self, node):
        self._replace(node, "pass")

    def visit_Break(self, node):
        self._replace(node, "continue")

    def visit_Continue(self, node):
        self._replace(node, "break")

    def visit_FunctionDef(self, node):
        for each in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(each)

    def visit_Delete(self, node):
        self._replace(node, "pass")

    def _nothing(self, node):
        """What is left as it is."""

    visit_JoinedStr = visit_Import = visit_ImportFrom = _nothing  # noqa: N815


def find(path, source):
    """All mutants of a file, in their order there.

    Args:
      path: of the file, in its repository; a part of the keys.
      source: its text.
    """
    whole, found, seen = source.encode(), [], collections.Counter()
    for start, end, text in sorted(_Finder(source).edits):
        changed = (whole[:start] + text.encode() + whole[end:]).decode()
        line = whole[:start].count(b"\n")
        before, after = (each.splitlines()[line].strip() for each in (source, changed))
        what = (path, before, after, text)
        seen[what] += 1  # equal lines are told apart by which of them it is
        key = hashlib.sha256(repr((*what, seen[what])).encode()).hexdigest()[:12]
        found.append(Mutant(path, key, line + 1, before, after, changed))
    return found


def sample(mutants, share, seed):
    """A share of each file's mutants, drawn at random: of a larger share these are a part."""

    def drawn(mutant):
        return hashlib.sha256(f"{seed} {mutant.key}".encode()).digest()

    found = []
    for path in dict.fromkeys(mutant.path for mutant in mutants):
        file = sorted((mutant for mutant in mutants if mutant.path == path), key=drawn)
        found += file[: math.ceil(share * len(file))]
    return found
