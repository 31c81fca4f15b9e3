"""What code a run rests on: the definitions that it reaches, and one hash of them.

From a function the closure follows every name through this project's imports: functions, constants, classes whole, a
module that is used as a value whole. Of every module on the way it takes the loose statements, which run when the
module is imported; of a module that has a kernel beside it (``x.py``, ``x.cpp``), the kernel whole.

The text of a definition is its syntax tree without docstrings, annotations and error messages. The hash knows texts and
what their names refer to, and no places: to move a function costs nothing, to change a constant dates whatever rests on
it. Of a name from outside it knows what it is called there. Statements that run at import count in their order.

What cannot be followed (a computed ``getattr``, ``importlib``, ``exec``) is named in ``Closure.problems``. What runs
before and around a run (``lab.sweep``, the decorator that declares it) is left out, and so is what code does to another
package that the run never imports.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import json
import symtable
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lab.files import ROOT

PROJECT = ("kadam", "lab")
KERNELS = (".cpp", ".cu")
INCLUDE = b'#include "'
MARKS = ("lab.experiments.run",)  # decorators that declare a run: what they say is in the key already
UNSEEN = ("exec", "eval", "compile", "__import__", "globals", "locals", "vars")
GETTERS = ("attrgetter", "methodcaller")
BY_NAME = ("getattr", "setattr", "delattr", "hasattr", *GETTERS)
LOADERS = (
    "importlib",
    "runpy",
    "pkgutil",
    "imp",
    "builtins",
    "ctypes",
    "subprocess",
    "sys.modules",
    "inspect.getmembers",
)
ATTRIBUTES = ("__getattribute__", "__subclasses__", "__doc__", "__annotations__")
QUIET = (  # decorators that do nothing but to the function or class below them
    "abc.abstractmethod", "contextlib.contextmanager", "dataclasses.dataclass", "functools.cache",
    "functools.lru_cache", "functools.total_ordering", "functools.wraps", "torch.enable_grad", "torch.inference_mode",
    "torch.no_grad", "triton.jit", "typing.overload",
)  # fmt: skip
FIELD_MARKS = ("ClassVar", "InitVar", "KW_ONLY")  # annotations that do compute something, of dataclasses
MESSAGE = ("annotation", "returns", "type_comment", "ctx", "kind")  # fields that compute nothing

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Chain = tuple[str, ...]


class Node(NamedTuple):
    """A definition: the module and the name in it; ``<1>`` is its first loose statement, ``x.cpp`` its kernel."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Import(NamedTuple):
    """What a name is bound to by an import: a module, or something of it."""

    module: str
    name: str | None

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


Hit = tuple[Chain, Node | str]  # what a chain refers to; a text is something outside, or missing, by its full name


class _Seen(NamedTuple):
    """A definition, looked at: hash of its text, what it refers to, packages from outside, problems."""

    text: str
    references: tuple[tuple[str, Node], ...]
    packages: frozenset[str]
    problems: tuple[str, ...]


class Statement(NamedTuple):
    """A statement, or a lambda in one.

    ``text`` is a hash of what it says and of the blocks around it, of a compound statement the head alone. ``last`` is
    the last line of the condition of one that can go two ways, else 0.
    """

    text: str
    line: int
    is_lambda: bool = False
    last: int = 0


@dataclass(frozen=True)
class Closure:
    """What a function rests on.

    Attributes:
        fingerprint: SHA-256 over texts and references; places do not count.
        definitions: of every definition a hash of its text.
        packages: top-level modules from outside that are named, the standard library's left out.
        problems: what cannot be followed, a sentence each.
    """

    fingerprint: str
    definitions: dict[str, str]
    packages: frozenset[str]
    problems: tuple[str, ...]


@dataclass
class _Module:
    name: str
    path: Path
    source: str
    bindings: dict[str, list[ast.stmt | Import]] = field(default_factory=dict)
    loose: list[ast.stmt] = field(default_factory=list)
    after: dict[ast.stmt, int] = field(default_factory=dict)  # how many loose statements and new bindings come before
    imports: list[str] = field(default_factory=list)
    stars: bool = False

    def statements(self, name: str) -> list[ast.stmt]:
        """What binds a name, or is the loose statement ``<1>``."""
        if name.startswith("<"):
            return [self.loose[int(name[1:-1]) - 1]]
        return [bound for bound in self.bindings.get(name, []) if isinstance(bound, ast.stmt)]

    def named(self, target: ast.expr) -> list[str]:
        """The full names of ``a.b.c`` if ``a`` is imported; its own if it is a builtin."""
        chain = _chain(target) or ("",)
        bound = self.bindings.get(chain[0], [Import(chain[0], None)])
        return [".".join((one.path, *chain[1:])) if isinstance(one, Import) else "" for one in bound]

    def defined(self) -> list[str]:
        return [name for name in self.bindings if self.statements(name)]

    @cached_property
    def tables(self) -> list[symtable.SymbolTable]:
        return symtable.symtable(self.source, self.name, "exec").get_children()


class Code:
    """The definitions of this project's Python under ``root``, and what they refer to."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._modules: dict[str, _Module | None] = {}
        self._found: dict[Node, _Seen] = {}

    # --- what a closure is ---

    def of_function(self, module: str, name: str, stop: Sequence[str] = ()) -> Closure:
        """The closure of what ``module`` calls ``name``; ``stop`` as in ``of_source``.

        Raises:
            ValueError: there is no such module or name in this project.
        """
        found = self._module(module)
        if found is None or not found.statements(name):
            raise ValueError(f"name: {module}.{name} (must be defined in a module of {' or '.join(PROJECT)})")
        return self._closure([Node(module, name)], stop)

    def of_source(self, source: str, stop: Sequence[str] = ()) -> Closure:
        """The closure of a script, such as the code cells of a page; what ``stop`` names is not followed.

        ``stop`` holds modules, and definitions as ``module.name``.
        """
        module = _parsed("<source>", Path("<source>"), source)
        self._modules["<source>"] = module
        self._found = {node: found for node, found in self._found.items() if node.module != "<source>"}
        names = [Node("<source>", name) for name in module.defined()]
        loose = [Node("<source>", f"<{i}>") for i in range(1, len(module.loose) + 1)]
        return self._closure([*names, *loose], stop)

    def _closure(self, roots: Sequence[Node], stop: Sequence[str] = ()) -> Closure:
        nodes: dict[Node, None] = {}
        queue = list(roots)
        entered: set[str] = set()
        while queue:
            node = queue.pop()
            if node in nodes or node.module in stop or str(node) in stop:
                continue
            nodes[node] = None
            queue += [to for _, to in self._refers(node).references]
            queue += self._kernels(node.module) + self._enter(node.module, entered)
        texts = {node: self._refers(node).text for node in nodes}
        edges = {node: [(how, to) for how, to in self._refers(node).references if to in nodes] for node in nodes}
        # every round a hash knows one step more of what it refers to, until no two are told apart that were not before
        hashes, kinds = texts, 0
        while len(set(hashes.values())) > kinds:
            kinds = len(set(hashes.values()))
            hashes = {node: _digest([texts[node], [(c, hashes[t]) for c, t in edges[node]]]) for node in nodes}
        total = _digest([sorted(hashes[node] for node in roots if node in nodes), sorted(hashes.values())])
        packages = frozenset().union(*(self._refers(node).packages for node in nodes))
        problems = tuple(sorted({problem for node in nodes for problem in self._refers(node).problems}))
        return Closure(total, {str(node): texts[node][:16] for node in sorted(nodes)}, packages, problems)

    def _enter(self, name: str, entered: set[str]) -> list[Node]:
        """The loose statements of a module and of all that it imports; each module once."""
        found, queue = [], [name]
        while queue:
            name = queue.pop()
            if name in entered or (module := self._module(name)) is None:
                continue
            entered.add(name)
            found += [Node(name, f"<{i}>") for i in range(1, len(module.loose) + 1)]
            for imported in (name, *module.imports):
                parts = imported.split(".")
                queue += [".".join(parts[: i + 1]) for i in range(len(parts))]
        return found

    def _kernels(self, name: str) -> list[Node]:
        module = self._module(name)
        assert module is not None
        paths = [module.path.with_suffix(suffix) for suffix in KERNELS]
        return [Node(name, path.name) for path in paths if path.is_file()]

    def texts(self, closure: Closure) -> dict[Node, str]:
        """Of every definition of a closure the hash of its text alone."""
        nodes = [Node(*name.rsplit(".", 1)) for name in closure.definitions]
        nodes = [node if self._module(node.module) else _kernel_node(node) for node in nodes]
        return {node: self._refers(node).text for node in nodes}

    def references(self, node: Node) -> list[tuple[str, Node]]:
        """What a definition calls the others that it refers to."""
        return list(self._refers(node).references)

    def statements(self, node: Node) -> tuple[Path | None, list[Statement]]:
        """The file of a definition, and its statements and lambdas, of a compound statement the head alone.

        What only raises an error is left out. Nothing for a kernel.
        """
        module = self._module(node.module)
        if module is None or node.name.endswith(KERNELS):
            return None, []
        found: list[Statement] = []
        for statement in module.statements(node.name):
            found += _statements(statement, self._is_mark(module))
        return module.path, found

    def function_lines(self, node: Node) -> set[int]:
        """The lines at which the functions of a definition begin, a decorator's where there is one."""
        module = self._module(node.module)
        statements = module.statements(node.name) if module and not node.name.endswith(KERNELS) else []
        functions = [
            inner
            for statement in statements
            for inner in ast.walk(statement)
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        return {min(part.lineno for part in (function, *function.decorator_list)) for function in functions}

    # --- what a definition says and refers to ---

    def _refers(self, node: Node) -> _Seen:
        if node not in self._found:
            self._found[node] = self._look(node)
        return self._found[node]

    def _look(self, node: Node) -> _Seen:
        module = self._module(node.module)
        assert module is not None
        if node.name.endswith(KERNELS):
            content = module.path.with_name(node.name).read_bytes()
            problems = [f"{node}: includes a file of its own"] if INCLUDE in content else []
            return _Seen(hashlib.sha256(content).hexdigest(), (), frozenset(), tuple(problems))
        references: dict[tuple[str, Node], None] = {}
        outside: dict[str, str] = {}
        packages: set[str] = set()
        problems = []
        if module.stars:
            problems.append(f"{module.name}: a star or relative import (name what is imported, from its full name)")
        if "__getattr__" in module.bindings:
            problems.append(f"{module.name}: has a __getattr__ (its names cannot be followed)")
        for statement in module.statements(node.name):
            local = _local_imports(statement)
            known = _global_names(statement, module.tables, self._is_mark(module))
            for chain, place in _chains(statement, self._is_mark(module)):
                hits = [hit for imported in local.get(chain[0], []) for hit in self._follow(imported, chain[1:])]
                if known(chain[0]):
                    hits += self._targets(module.name, chain[0], chain[1:])
                    if not hits and chain[0] in UNSEEN and hasattr(builtins, chain[0]):
                        problems.append(_said(node, place, f"calls {chain[0]} (code that is computed)"))
                for inner, target in hits:
                    how = ".".join((*chain, *inner))
                    if isinstance(target, Node):
                        references[how, target] = None
                        if target.module in [mark.rpartition(".")[0] for mark in MARKS]:
                            problems.append(_said(node, place, "uses what declares runs (name the function itself)"))
                        continue
                    outside[how] = target
                    package = target.split(".")[0]
                    if not self._is_outside(package):
                        problems.append(_said(node, place, f"uses {target}, which is not defined in {PROJECT}"))
                    elif package not in sys.stdlib_module_names:
                        packages.add(package)
                    if target.rpartition(".")[2] in GETTERS and chain[-1] not in GETTERS:
                        problems.append(_said(node, place, f"gives {target} another name"))
                    if _within(target, LOADERS) and not _within(target, ("importlib.metadata",)):
                        problems.append(_said(node, place, f"uses {target} (code that is loaded, or looked up)"))
            problems += self._hidden(node, statement, module, local)
        texts = [_text(statement, self._is_mark(module)) for statement in module.statements(node.name)]
        order = [module.after[s] for s in module.statements(node.name) if _runs_at_import(s, self._is_mark(module))]
        text = _digest([texts, sorted(outside.items()), order])
        ordered = sorted(references, key=lambda reference: reference[0])  # else as bound: the last of a name counts
        return _Seen(text, tuple(ordered), frozenset(packages), tuple(problems))

    def _is_outside(self, package: str) -> bool:
        shadow = self.root / package
        return package not in (*PROJECT, "") and not shadow.is_dir() and not shadow.with_suffix(".py").is_file()

    def _targets(self, module: str, name: str, rest: Chain, seen: frozenset[Node] = frozenset()) -> list[Hit]:
        """All that ``name.rest`` of a module may refer to."""
        found = self._module(module)
        if found is None or Node(module, name) in seen:
            return []
        hits: list[Hit] = [((), Node(module, name))] if found.statements(name) else []
        for bound in found.bindings.get(name, []):
            if isinstance(bound, Import):
                hits += self._follow(bound, rest, seen | {Node(module, name)})
        return hits

    def _follow(self, imported: Import, rest: Chain, seen: frozenset[Node] = frozenset()) -> list[Hit]:
        """All that ``rest`` of something imported may refer to."""
        if imported.module.split(".")[0] not in PROJECT:
            return [((), ".".join((imported.path, *rest)))]
        base, rest = imported.module, rest if imported.name is None else (imported.name, *rest)
        while (found := self._module(base)) is not None:
            if not rest:  # the module as a value: all of it
                if found.path.name == "__init__.py":
                    return [((), base)]  # and its submodules, which nothing names
                return [
                    ((name, *inner), hit)
                    for name in sorted(found.bindings)
                    for inner, hit in self._targets(base, name, (), seen)
                ]
            name, rest = rest[0], rest[1:]
            if name in ("__file__", "__name__"):
                return []
            bound = [one for one in found.bindings.get(name, []) if one != Import(base, name)]
            if bound:
                return self._targets(base, name, rest, seen)
            base = f"{base}.{name}"
        return [((), base)]

    def _hidden(
        self, node: Node, statement: ast.stmt, module: _Module, local: dict[str, list[Import]]
    ) -> Iterator[str]:
        """Sentences about what the closure cannot see."""

        def imports(target: ast.expr) -> list[str]:
            chain = _chain(target) or ("",)
            found = [*local.get(chain[0], []), *module.bindings.get(chain[0], [])]
            return [".".join((one.path, *chain[1:])) for one in found if isinstance(one, Import)]

        def is_project_module(target: ast.expr) -> bool:
            whole = isinstance(target, ast.Name)  # also what a module holds
            return any(path.split(".")[0] in PROJECT and (whole or self._path(path)) for path in imports(target))

        def is_outside(target: ast.expr) -> bool:
            return any(self._is_outside(path.split(".")[0]) for path in imports(target))

        texts = _literals(statement)
        called = [inner.func for inner in ast.walk(statement) if isinstance(inner, ast.Call)]
        for inner in ast.walk(statement):
            chain = _chain(inner.func) if isinstance(inner, ast.Call) else None
            if isinstance(inner, ast.Call) and chain and chain[-1] in BY_NAME and inner.args:
                of = None if chain[-1] in GETTERS else inner.args[0]
                for name in inner.args if of is None else inner.args[1:2]:
                    literal = isinstance(name, ast.Constant) or (isinstance(name, ast.Name) and name.id in texts)
                    if not literal and not (chain[-1] == "getattr" and of is not None and is_outside(of)):
                        yield _said(node, inner, f"calls {chain[-1]} with a computed name")
                    elif of is not None and is_project_module(of):
                        yield _said(node, inner, f"calls {chain[-1]} on a module of this project")
            if isinstance(inner, ast.Name) and inner.id in BY_NAME and inner not in called:
                yield _said(node, inner, f"hands on {inner.id}, which may be called with a computed name")
            if (
                isinstance(inner, ast.Attribute)
                and not isinstance(inner.ctx, ast.Load)
                and is_project_module(inner.value)
            ):
                yield _said(node, inner, "changes a module of this project")
            read = getattr(inner, "attr", getattr(inner, "id", None))
            if read in ATTRIBUTES:
                yield _said(node, inner, f"reads {read}")
            if isinstance(inner, ast.FunctionDef) and inner.name == "__init_subclass__":
                yield _said(node, inner, "has an __init_subclass__ (subclasses that nothing names may matter)")
            if isinstance(inner, ast.ExceptHandler) and inner.name in _read_beside_raise(inner.body):
                yield _said(node, inner, "reads an exception, whose message is no part of the fingerprint")

    def _is_mark(self, module: _Module) -> Any:
        def marks(decorator: ast.expr) -> bool:
            named = module.named(decorator.func if isinstance(decorator, ast.Call) else decorator)
            return bool(named) and set(named) <= set(MARKS)

        return marks

    def _module(self, name: str) -> _Module | None:
        if name not in self._modules:
            path = self._path(name)
            self._modules[name] = None if path is None else _parsed(name, path, path.read_text(encoding="utf-8"))
        return self._modules[name]

    def _path(self, name: str) -> Path | None:
        if name.split(".")[0] not in PROJECT:
            return None
        base = self.root.joinpath(*name.split("."))
        # in the order in which Python looks
        return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


@cache
def here() -> Code:
    """The code of this checkout, as it was when it was first asked for."""
    return Code()


def _parsed(name: str, path: Path, source: str) -> _Module:
    module = _Module(name, path, source)
    tree = ast.parse(source)
    steps = 0
    for statement in tree.body:
        if _is_docstring(statement):
            continue
        found: list[tuple[str, ast.stmt | Import]] = [(bound, statement) for bound in _bound(statement)]
        for inner in () if isinstance(statement, DEFINITIONS) else ast.walk(statement):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                found += _imported(inner)
                module.stars |= isinstance(inner, ast.ImportFrom) and (
                    inner.level > 0 or any(alias.name == "*" for alias in inner.names)
                )
        module.after[statement] = steps
        if not isinstance(statement, ast.Import | ast.ImportFrom) and _is_loose(statement, module):
            module.loose.append(statement)
            steps += 1
        steps += any(bound in module.bindings and module.bindings[bound] != [what] for bound, what in found)
        for bound, what in found:
            module.bindings.setdefault(bound, []).append(what)
    for statement in tree.body:  # a function that says "global x" is part of what x is
        if isinstance(statement, DEFINITIONS):
            for inner in ast.walk(statement):
                for bound in inner.names if isinstance(inner, ast.Global) else ():
                    module.bindings.setdefault(bound, []).append(statement)
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Import):
            module.imports += [alias.name for alias in inner.names]
        elif isinstance(inner, ast.ImportFrom):
            module.imports += [f"{inner.module}.{alias.name}" for alias in inner.names]
    return module


def _imported(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Import]]:
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if alias.asname:
                yield alias.asname, Import(alias.name, None)
            else:  # "import a.b" binds a
                yield alias.name.split(".")[0], Import(alias.name.split(".")[0], None)
    elif statement.module != "__future__":
        for alias in statement.names:
            yield alias.asname or alias.name, Import("." * statement.level + (statement.module or ""), alias.name)


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement of a module binds; an import's own are not among them."""
    if isinstance(statement, DEFINITIONS):
        outer = (inner for part in _outer(statement) for inner in ast.walk(part))
        return [statement.name, *(inner.target.id for inner in outer if isinstance(inner, ast.NamedExpr))]
    if isinstance(statement, ast.Expr | ast.AugAssign | ast.Delete):
        return []
    found = []
    for inner in ast.walk(statement):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            found.append(inner.id)
        elif isinstance(inner, DEFINITIONS):
            found.append(inner.name)
    return list(dict.fromkeys(found))


def _is_loose(statement: ast.stmt, module: _Module) -> bool:
    """Whether a statement may do more than bind its names: then it counts wherever its module is imported."""
    if isinstance(statement, DEFINITIONS):
        return not all(_is_quiet(decorator, module) for decorator in statement.decorator_list)
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or not _bound(statement):
        return True
    for inner in _at_import(statement):
        if isinstance(inner, ast.Attribute | ast.Subscript) and not isinstance(inner.ctx, ast.Load):
            return True
        chain = _chain(inner.func) if isinstance(inner, ast.Call) else None
        for bound in module.bindings.get(chain[0], []) if chain else ():
            if not isinstance(bound, Import) or bound.module.split(".")[0] in (*PROJECT, ""):
                return True
    return False


def _is_quiet(decorator: ast.expr, module: _Module) -> bool:
    named = module.named(decorator.func if isinstance(decorator, ast.Call) else decorator)
    return bool(named) and set(named) <= {*QUIET, *MARKS}


def _at_import(statement: ast.stmt) -> Iterator[ast.AST]:
    """What of a statement is computed at once: all but what lambdas hold."""
    queue: list[ast.AST] = [statement]
    while queue:
        inner = queue.pop()
        yield inner
        queue += () if isinstance(inner, ast.Lambda) else ast.iter_child_nodes(inner)


def _runs_at_import(statement: ast.stmt, is_mark: Any) -> bool:
    return not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) or bool(_outer(statement, is_mark))


def _outer(statement: Definition, is_mark: Any = None) -> list[ast.expr]:
    """What of a definition belongs to the module: decorators, defaults and bases."""
    outer = [decorator for decorator in statement.decorator_list if not (is_mark and is_mark(decorator))]
    if isinstance(statement, ast.ClassDef):
        return [*outer, *statement.bases, *(keyword.value for keyword in statement.keywords)]
    return [*outer, *statement.args.defaults, *(value for value in statement.args.kw_defaults if value)]


def _local_imports(statement: ast.stmt) -> dict[str, list[Import]]:
    found: dict[str, list[Import]] = {}
    for inner in ast.walk(statement) if isinstance(statement, DEFINITIONS) else ():
        if isinstance(inner, ast.Import | ast.ImportFrom):
            for bound, imported in _imported(inner):
                found.setdefault(bound, []).append(imported)
    return found


def _global_names(statement: ast.stmt, tables: Sequence[symtable.SymbolTable], is_mark: Any) -> Any:
    """Tells of a name in a definition whether it may be the module's; of other statements, always."""
    if not isinstance(statement, DEFINITIONS):
        return lambda name: True
    own = [table for table in tables if table.get_name() == statement.name]
    names = {name for table in own for name in _globals_of(table)}
    outer = (inner for part in _outer(statement, is_mark) for inner in ast.walk(part))
    return {*names, *(inner.id for inner in outer if isinstance(inner, ast.Name))}.__contains__


def _globals_of(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        # in a class, x = x reads the module's
        if symbol.is_global() or (table.get_type() == "class" and symbol.is_referenced()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals_of(child)


def _chains(statement: ast.stmt, is_mark: Any) -> list[tuple[Chain, ast.AST]]:
    """Every ``a.b.c`` that is read or written in what counts of a statement, as ("a", "b", "c")."""
    found: list[tuple[Chain, ast.AST]] = []

    def visit(node: ast.AST) -> None:
        chain = _chain(node)
        if chain:
            found.append((chain, node))
            return
        for child in _parts(node, is_mark):
            visit(child)

    visit(statement)
    return found


def _chain(node: ast.AST | None) -> Chain | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return (node.id, *reversed(names)) if isinstance(node, ast.Name) else None


def _fields(node: ast.AST, is_mark: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a node that compute something."""
    for name, value in ast.iter_fields(node):
        if name == "annotation" and isinstance(node, ast.AnnAssign):
            yield name, [mark for mark in FIELD_MARKS if mark in ast.dump(value)]
        if name in MESSAGE or value is None or value == []:
            continue
        if name == "body" and isinstance(node, DEFINITIONS):
            value = [part for i, part in enumerate(value) if not (i == 0 and _is_docstring(part))]
        elif name == "decorator_list":
            value = [decorator for decorator in value if not is_mark(decorator)]
        elif isinstance(node, ast.Raise) and name == "exc" and isinstance(value, ast.Call):
            value = [value.func, *(part for part in (*value.args, *value.keywords) if not _is_message(part))]
        elif isinstance(node, ast.Assert) and name == "msg":
            continue
        if isinstance(value, list):  # what an import binds is followed; a name from outside is known
            value = [part for part in value if not isinstance(part, ast.Import | ast.ImportFrom)]
        yield name, value


def _is_message(part: ast.AST) -> bool:
    """Whether it is a text, for people."""
    if isinstance(part, ast.BinOp):
        return _is_message(part.left) or _is_message(part.right)
    if isinstance(part, ast.Call):
        return isinstance(part.func, ast.Attribute) and _is_message(part.func.value)
    return isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))


def _read_beside_raise(body: Sequence[ast.AST]) -> set[str]:
    """The names that are read in ``body``, but for what raises errors."""
    found: set[str] = set()
    queue = list(body)
    while queue:
        inner = queue.pop()
        if isinstance(inner, ast.Name):
            found.add(inner.id)
        queue += () if isinstance(inner, ast.Raise) else ast.iter_child_nodes(inner)
    return found


def _within(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(f"{place}.") for place in places)


def _parts(node: ast.AST, is_mark: Any) -> Iterator[ast.AST]:
    for _, value in _fields(node, is_mark):
        yield from (part for part in (value if isinstance(value, list) else [value]) if isinstance(part, ast.AST))


def _text(node: Any, is_mark: Any) -> Any:
    """A syntax tree as nested lists: the same in every version of Python that has the same tree."""
    if isinstance(node, ast.AST):
        parts = [[name, _text(value, is_mark)] for name, value in _fields(node, is_mark)]
        return [type(node).__name__, [part for part in parts if part[1] != []]]
    if isinstance(node, list):
        return [_text(part, is_mark) for part in node]
    return [type(node).__name__, repr(node)]


def _kernel_node(node: Node) -> Node:
    """``a.b.x.cpp`` is the kernel x.cpp of the module a.b."""
    module, stem = node.module.rsplit(".", 1)
    return Node(module, f"{stem}.{node.name}")


def _statements(statement: ast.AST, is_mark: Any, within: str = "") -> Iterator[Statement]:
    blocks = ("body", "orelse", "finalbody", "handlers", "cases")
    head, inner, lambdas = [], [], []
    for name, value in _fields(statement, is_mark):
        if name in blocks and isinstance(value, list):
            inner += [(part, f"{within}/{name}") for part in value]
        else:
            head.append([name, _text(value, is_mark)])
            parts = value if isinstance(value, list) else [value]
            found = (node for part in parts if isinstance(part, ast.AST) for node in ast.walk(part))
            lambdas += [node for node in found if isinstance(node, ast.Lambda)]
    if isinstance(statement, ast.Raise):
        return
    if isinstance(statement, ast.ExceptHandler) and isinstance(statement.body[-1], ast.Raise):
        return
    if not isinstance(statement, ast.ExceptHandler | ast.match_case) and not _is_docstring(statement):
        text = _digest([type(statement).__name__, head, within])
        yield Statement(text, getattr(statement, "lineno", 0), last=_end_of_fork(statement))
        yield from (Statement(_digest(_text(one, is_mark)), one.lineno, True) for one in lambdas)
    for part, block in inner:
        yield from _statements(part, is_mark, block)


def _end_of_fork(statement: ast.AST) -> int:
    if not isinstance(statement, ast.If | ast.While) or isinstance(statement.test, ast.Constant):
        return 0
    only_raises = isinstance(statement.body[-1], ast.Raise) and not statement.orelse
    return 0 if only_raises else statement.test.end_lineno or 0


def _is_docstring(statement: ast.AST) -> bool:
    # also a text below an assignment, which documents it
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _literals(statement: ast.stmt) -> set[str]:
    """The names that loops and comprehensions of a statement give nothing but literal texts."""
    names = [
        node.target.id for node in _loops(statement) if isinstance(node.target, ast.Name) and _is_literal(node.iter)
    ]
    stored = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return {name for name in names if stored.count(name) == names.count(name)}


def _loops(statement: ast.stmt) -> Iterator[ast.For | ast.comprehension]:
    return (node for node in ast.walk(statement) if isinstance(node, ast.For | ast.comprehension))


def _is_literal(value: ast.expr) -> bool:
    return isinstance(value, ast.Tuple | ast.List) and all(isinstance(part, ast.Constant) for part in value.elts)


def _said(node: Node, place: ast.AST, what: str) -> str:
    return f"{node}, line {getattr(place, 'lineno', 0)}: {what}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
