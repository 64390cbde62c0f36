"""Jinja templates of strangers, run within bounds.

A chat template comes with the model, so it is as trustworthy as whoever made the file. It runs in
jinja2's immutable sandbox (no attributes that start with an underscore, no changes to what it is
given) and, because the sandbox bounds neither time nor memory, on a budget: every loop iteration,
call and operator spends from it, and no value it makes may grow past a size.

How the budget is enforced: the template's syntax tree is rewritten before it is compiled. The
iterable of a loop goes through the filter `_counted`, values that are built (lists, joined strings,
captured blocks) through `_sized`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor
from jinja2.exceptions import SecurityError

ALLOWED_FILTERS = frozenset((
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "groupby", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min",
    "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort",
    "string", "sum", "title", "trim", "unique", "upper",
))  # fmt: skip
"""jinja2's filters that chat templates use and whose work is bounded by the size of their input; `indent`
and `tojson` are our own. Another filter is refused by name when the template is loaded."""

_GROWING_METHODS = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"))
_LARGE_NUMBER = re.compile(r"\d{5}")
_LARGEST_ARGUMENT = 9_999


class TemplateLimitExceeded(jinja2.TemplateError):
    """The template asked for more than its budget."""


class TemplateRaised(jinja2.TemplateError):
    """The template refused its input with raise_exception."""


class Budget:
    """What one rendering may spend.

    Args:
        operations: loop iterations, calls and operators together.
        chars: characters (or elements) of any one value, and of the whole output.
        seconds: wall clock; looked at whenever an operation is spent.
    """

    def __init__(self, operations: int = 500_000, chars: int = 4_000_000, seconds: float = 2.0) -> None:
        self.operations = operations
        self.chars = chars
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._left = operations

    def spend(self, operations: int = 1) -> None:
        """Raises TemplateLimitExceeded when operations or time are used up."""
        self._left -= operations
        if self._left < 0:
            raise TemplateLimitExceeded(f"more than {self.operations} loop iterations and calls")
        if time.monotonic() > self._deadline:
            raise TemplateLimitExceeded(f"took longer than {self.seconds:g} s")

    def check_size(self, value: Any) -> Any:
        """The value, if it is within bounds however deep it nests."""
        if isinstance(value, str):
            size = len(value)
        elif isinstance(value, (list, tuple, dict, jinja2.utils.Namespace)):
            size = self._measure(value)
        else:
            return value
        if size > self.chars:
            self.refuse_size()
        return value

    def refuse_size(self) -> NoReturn:
        """Raise for a value that is too large."""
        raise TemplateLimitExceeded(f"made a value of more than {self.chars} characters or elements")

    def _measure(self, value: Any) -> int:
        """Characters and elements in `value`, counted once per appearance: what printing it would cost."""
        size, stack = 0, [value]
        while stack:
            item = stack.pop()
            size += 1
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, Mapping):
                stack.extend(item.keys())
                stack.extend(item.values())
            elif isinstance(item, (list, tuple)):
                stack.extend(item)
            elif isinstance(item, jinja2.utils.Namespace):
                stack.extend(item._Namespace__attrs.values())  # type: ignore[attr-defined]
            if size > self.chars:
                break
        return size


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox on a budget, with the functions that chat templates expect."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            extensions=[jinja2.ext.loopcontrols, _GenerationTag],
            finalize=self._finalize,
        )
        self._local = threading.local()
        self.filters = {name: self._checked(self.filters[name]) for name in sorted(ALLOWED_FILTERS)}
        self.filters["replace"] = self._replace
        self.filters["join"] = self._checked_join(self.filters["join"])
        self.filters["tojson"] = self._tojson
        self.filters["indent"] = self._indent
        self.filters["_counted"] = self._counted
        self.filters["_sized"] = lambda value: self.budget.check_size(value)
        self.filters["_joined"] = self._joined
        self.globals = {
            "range": jinja2.sandbox.safe_range,
            "dict": dict,
            "namespace": jinja2.utils.Namespace,
            "raise_exception": _raise_exception,
        }

    @property
    def budget(self) -> Budget:
        """That of the rendering under way in this thread; while compiling, a small one."""
        found: Budget | None = getattr(self._local, "budget", None)
        return found if found is not None else Budget(10_000, 100_000)

    def render(self, template: jinja2.Template, budget: Budget, variables: Mapping[str, Any]) -> str:
        """The text. Raises jinja2.TemplateError; TypeError and the like where the template is at fault."""
        self._local.budget = budget
        try:
            pieces, size = [], 0
            for piece in template.generate(**variables):
                size += len(piece)
                if size > budget.chars:
                    raise TemplateLimitExceeded(f"wrote more than {budget.chars} characters")
                pieces.append(piece)
            return "".join(pieces)
        finally:
            self._local.budget = None

    # -- hooks of jinja2 --

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        _refuse_private(tree)
        bounded: jinja2.nodes.Template = _Bounder().visit(tree)
        return bounded

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template comes through here."""
        budget = __self.budget
        budget.spend()
        _check_arguments(budget, __obj, args, kwargs)
        return budget.check_size(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Every intercepted operator comes through here."""
        budget = self.budget
        budget.spend()
        if operator == "*":
            _check_repetition(budget, left, right)
        elif operator == "**" and isinstance(right, int) and abs(right) > 64:
            budget.refuse_size()
        elif operator == "%" and isinstance(left, str):
            _check_format(budget, left, right if isinstance(right, tuple) else (right,))
        return budget.check_size(super().call_binop(context, operator, left, right))

    # -- filters --

    def _finalize(self, value: Any) -> Any:
        return self.budget.check_size(value)

    def _checked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter on a budget. What jinja2 noted on the function (its `pass_` marks) is kept."""

        def checked(*args: Any, **kwargs: Any) -> Any:
            budget = self.budget
            budget.spend()
            for value in args:
                budget.check_size(value)
            return budget.check_size(function(*args, **kwargs))

        checked.__dict__.update(getattr(function, "__dict__", {}))
        return checked

    def _checked_join(self, join: Callable[..., Any]) -> Callable[..., Any]:
        def checked(context: Any, value: Iterable[Any], d: str = "", attribute: Any = None) -> Any:
            items = list(value)
            if len(items) * (len(str(d)) + 1) > self.budget.chars:
                self.budget.refuse_size()
            return self.budget.check_size(join(context, items, str(d), attribute))

        checked.__dict__.update(join.__dict__)
        return checked

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = (str(self.budget.check_size(value)) for value in (text, old, new))
        self.budget.spend()
        _check_replace(self.budget, text, old, new)
        return str(text.replace(old, new, -1 if count is None else count))

    def _joined(self, parts: list[Any]) -> str:
        self.budget.spend()
        return "".join(map(str, self.budget.check_size(parts)))

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Plain JSON, as Hugging Face's templates expect (jinja2's own would escape for HTML)."""
        self.budget.spend()
        if indent is not None and (not isinstance(indent, int) or not 0 <= indent <= 16):
            raise TemplateLimitExceeded("tojson: indent must be between 0 and 16")
        text = json.dumps(
            self.budget.check_size(value),
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
        return str(self.budget.check_size(text))

    def _indent(self, text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        size = width if isinstance(width, int) else len(width)
        if size * (text.count("\n") + 1) > self.budget.chars:
            self.budget.refuse_size()
        return str(jinja2.filters.do_indent(self.budget.check_size(text), width, first, blank))

    def _counted(self, iterable: Any) -> Any:
        return _Counted(iterable, self.budget)


class _Counted:
    """An iterable that spends one operation per item; sized when the original is, so `loop.length` works."""

    def __init__(self, iterable: Any, budget: Budget) -> None:
        self._iterable = iterable
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            self._budget.spend()
            yield item

    def __len__(self) -> int:
        return len(self._iterable)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; transparent here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounder(jinja2.visitor.NodeTransformer):
    """Sends iterables through `_counted` and what is built through `_sized` (see the module)."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        parts = jinja2.nodes.List(node.nodes, lineno=node.lineno)
        return _filtered(parts, "_joined")

    def visit_AssignBlock(self, node: jinja2.nodes.AssignBlock) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.filter = _filtered(node.filter, "_sized", node.lineno)
        return node

    def visit_List(self, node: jinja2.nodes.List) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_sized") if node.items else node

    def visit_Dict(self, node: jinja2.nodes.Dict) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_sized") if node.items else node

    def visit_Tuple(self, node: jinja2.nodes.Tuple) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_sized") if node.ctx == "load" and node.items else node


def _filtered(node: Any, name: str, lineno: int | None = None) -> jinja2.nodes.Filter:
    line = node.lineno if lineno is None else lineno
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=line)


def _refuse_private(tree: jinja2.nodes.Template) -> None:
    """A template that names Python's private attributes is an attack: no honest one does."""
    for node in tree.find_all((jinja2.nodes.Getattr, jinja2.nodes.Const)):
        if isinstance(node, jinja2.nodes.Getattr):
            private = node.attr.startswith("_")
            name = node.attr
        else:
            value = getattr(node, "value", None)
            name = value if isinstance(value, str) else ""
            private = name.startswith("__") and name.endswith("__") and len(name) > 4
        if private:
            raise SecurityError(f"line {node.lineno}: {name[:40]!r} is not allowed in a template")
    for include in tree.find_all((jinja2.nodes.Include, jinja2.nodes.Import, jinja2.nodes.FromImport)):
        raise SecurityError(f"line {include.lineno}: a template may not include others")
    for extends in tree.find_all(jinja2.nodes.Extends):
        raise SecurityError(f"line {extends.lineno}: a template may not extend others")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRaised(message)


def _check_repetition(budget: Budget, left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        repeats = isinstance(value, (str, list, tuple)) and isinstance(times, int)
        if repeats and len(value) * times > budget.chars:
            budget.refuse_size()
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 4096:
        budget.refuse_size()


def _check_arguments(budget: Budget, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """String methods that can make much of little."""
    function = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
    owner = getattr(function, "__self__", None)
    if not isinstance(owner, str):
        return
    name = getattr(function, "__name__", "")
    if name in _GROWING_METHODS:
        _check_format(budget, owner if name.startswith("format") else "", (*args, *kwargs.values()))
    elif name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
        _check_replace(budget, owner, args[0], args[1])
    elif name == "join" and args:
        size = sum(len(part) + len(owner) for part in budget.check_size(args[0]) if isinstance(part, str))
        if size > budget.chars:
            budget.refuse_size()


def _check_format(budget: Budget, template: str, values: tuple[Any, ...]) -> None:
    """Widths: a number of five digits in the format, or a large integer given as argument."""
    large = any(isinstance(value, int) and abs(value) > _LARGEST_ARGUMENT for value in values)
    if _LARGE_NUMBER.search(template) or (large and ("*" in template or "{" in template or not template)):
        budget.refuse_size()
    budget.check_size(list(values))


def _check_replace(budget: Budget, text: str, old: str, new: str) -> None:
    times = text.count(old) if old else len(text) + 1
    if len(text) + times * (len(new) - len(old)) > budget.chars:
        budget.refuse_size()
