"""What code a run rests on: the definitions that it reaches, and one hash of them.

From a function the closure follows every name through this project's imports: functions, constants, classes whole, a
module that is used as a value whole. Of every module on the way it takes the loose statements, which run when the
module is imported; of a module that has a kernel beside it (``x.py``, ``x.cpp``), the kernel whole.

The text of a definition is its syntax tree without docstrings, annotations and error messages. The hash knows texts and
what their names refer to, and no places: to move a function costs nothing, to change a constant dates whatever rests on
it. What cannot be followed (a computed ``getattr``, ``importlib``, ``exec``) is named in ``Closure.problems``.
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
MARKS = (("lab.experiments", "run"),)  # decorators that declare a run: what they say is in the key already
UNSEEN = ("exec", "eval", "compile", "__import__", "globals", "locals", "vars")
GETTERS = ("attrgetter", "methodcaller")
BY_NAME = ("getattr", "setattr", "delattr", "hasattr", *GETTERS)
LOADERS = ("importlib", "runpy", "pkgutil", "imp")
MESSAGE = ("annotation", "returns", "type_comment", "ctx", "kind")  # fields that compute nothing

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


@dataclass(frozen=True)
class Closure:
    """What a function rests on.

    Attributes:
        fingerprint: SHA-256 over texts and references; places do not count.
        definitions: of every definition a hash of its text and of the texts that it refers to.
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
    bindings: dict[str, list[ast.stmt] | Import] = field(default_factory=dict)
    loose: list[ast.stmt] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    stars: bool = False

    @cached_property
    def tables(self) -> list[symtable.SymbolTable]:
        return symtable.symtable(self.source, self.name, "exec").get_children()


class Code:
    """The definitions of this project's Python under ``root``, and what they refer to."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._modules: dict[str, _Module | None] = {}
        self._found: dict[Node, tuple[str, dict[Chain, Node], frozenset[str], tuple[str, ...]]] = {}

    # --- what a closure is ---

    def of_function(self, module: str, name: str) -> Closure:
        """The closure of what ``module`` calls ``name``.

        Raises:
            ValueError: there is no such module or name in this project.
        """
        found = self._module(module)
        if found is None or not isinstance(found.bindings.get(name), list):
            raise ValueError(f"name: {module}.{name} (must be defined in a module of {' or '.join(PROJECT)})")
        return self._closure([Node(module, name)])

    def of_source(self, source: str, stop: Sequence[str] = ()) -> Closure:
        """The closure of a script, such as the code cells of a page; what ``stop`` names is not followed.

        ``stop`` holds modules, and definitions as ``module.name``.
        """
        module = _parsed("<source>", Path("<source>"), source)
        self._modules["<source>"] = module
        self._found = {node: found for node, found in self._found.items() if node.module != "<source>"}
        names = [Node("<source>", name) for name, bound in module.bindings.items() if isinstance(bound, list)]
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
            queue += self._refers(node)[1].values()
            queue += self._kernels(node.module) + self._enter(node.module, entered)
        texts = {node: self._refers(node)[0] for node in nodes}
        edges = {
            node: sorted((".".join(chain), to) for chain, to in self._refers(node)[1].items() if to in nodes)
            for node in nodes
        }
        # every round a hash knows one step more of what it refers to, until no two are told apart that were not before
        hashes, kinds = texts, 0
        first: dict[Node, str] = {}
        while len(set(hashes.values())) > kinds:
            kinds = len(set(hashes.values()))
            hashes = {node: _digest([texts[node], [(c, hashes[t]) for c, t in edges[node]]]) for node in nodes}
            first = first or hashes
        total = _digest([sorted(hashes[node] for node in roots if node in nodes), sorted(set(hashes.values()))])
        packages = frozenset().union(*(self._refers(node)[2] for node in nodes))
        problems = tuple(sorted(problem for node in nodes for problem in self._refers(node)[3]))
        return Closure(total, {str(node): first[node][:16] for node in sorted(nodes)}, packages, problems)

    def _enter(self, name: str, entered: set[str]) -> list[Node]:
        """The loose statements of a module and of all that it imports; each module once."""
        found, queue = [], [name]
        while queue:
            name = queue.pop()
            if name in entered or (module := self._module(name)) is None:
                continue
            entered.add(name)
            found += [Node(name, f"<{i}>") for i in range(1, len(module.loose) + 1)]
            parts = name.split(".")
            queue += [".".join(parts[:i]) for i in range(1, len(parts))]
            for imported in module.imports:
                queue += [imported.module, f"{imported.module}.{imported.name}"]
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
        return {node: self._refers(node)[0] for node in nodes}

    def statements(self, node: Node) -> tuple[Path | None, list[tuple[str, int]]]:
        """The file of a definition, and of each of its statements the text (of a compound one, the head) and the line.

        What only raises an error is left out. Nothing for a kernel.
        """
        module = self._module(node.module)
        if module is None or node.name.endswith(KERNELS):
            return None, []
        bound = module.loose[int(node.name[1:-1]) - 1] if node.name.startswith("<") else module.bindings[node.name]
        found: list[tuple[str, int]] = []
        for statement in bound if isinstance(bound, list) else [bound]:
            assert isinstance(statement, ast.stmt)
            found += _statements(statement, self._is_mark(module))
        return module.path, found

    # --- what a definition says and refers to ---

    def _refers(self, node: Node) -> tuple[str, dict[Chain, Node], frozenset[str], tuple[str, ...]]:
        """Hash of the text, references to this project, packages from outside, problems."""
        if node not in self._found:
            self._found[node] = self._look(node)
        return self._found[node]

    def _look(self, node: Node) -> tuple[str, dict[Chain, Node], frozenset[str], tuple[str, ...]]:
        module = self._module(node.module)
        assert module is not None
        if node.name.endswith(KERNELS):
            content = module.path.with_name(node.name).read_bytes()
            return hashlib.sha256(content).hexdigest(), {}, frozenset(), ()
        if node.name.startswith("<"):
            statements = [module.loose[int(node.name[1:-1]) - 1]]
        else:
            bound = module.bindings[node.name]
            assert isinstance(bound, list)
            statements = bound
        references: dict[Chain, Node] = {}
        packages: set[str] = set()
        problems: list[str] = []
        if module.stars:
            problems.append(f"{module.name}: a star or relative import (name what is imported, from its full name)")
        if "__getattr__" in module.bindings:
            problems.append(f"{module.name}: has a __getattr__ (its names cannot be followed)")
        for statement in statements:
            local = _local_imports(statement)
            known = _global_names(statement, module.tables, self._is_mark(module))
            for chain, place in _chains(statement, self._is_mark(module)):
                bound_here = local.get(chain[0]) or (module.bindings.get(chain[0]) if known(chain[0]) else None)
                if bound_here is None:
                    if chain[0] in UNSEEN and hasattr(builtins, chain[0]) and known(chain[0]):
                        problems.append(_said(node, place, f"calls {chain[0]} (code that is computed)"))
                    continue
                targets, outside = self._resolve(module.name, bound_here, chain)
                for target in targets:
                    references[(*chain, str(target)) if len(targets) > 1 else chain] = target
                if outside:
                    if outside in LOADERS and chain[:2] != ("importlib", "metadata"):
                        problems.append(_said(node, place, f"loads code by {outside}"))
                    if outside == "sys" and "modules" in chain:
                        problems.append(_said(node, place, "reads sys.modules"))
                    if outside not in sys.stdlib_module_names:
                        packages.add(outside)
            problems += self._hidden(node, statement, module, local)
        text = _digest([_text(statement, self._is_mark(module)) for statement in statements])
        return text, references, frozenset(packages), tuple(problems)

    def _resolve(self, module: str, bound: list[ast.stmt] | Import, chain: Chain) -> tuple[list[Node], str | None]:
        """What a chain of attributes refers to: definitions of this project, or a package from outside."""
        if isinstance(bound, list):
            return [Node(module, chain[0])], None
        base, rest = bound.module, chain[1:]
        if bound.name is not None:
            rest = (bound.name, *rest)
        if base.split(".")[0] not in PROJECT:
            return [], base.split(".")[0]
        while True:
            found = self._module(base)
            if found is None:
                return [], None
            if not rest:  # the module as a value: all of it
                names = [name for name, what in found.bindings.items() if isinstance(what, list)]
                return [Node(base, name) for name in names], None
            inner = found.bindings.get(rest[0])
            if isinstance(inner, list):
                return [Node(base, rest[0])], None
            if isinstance(inner, Import) and (inner.module, inner.name) != (base, rest[0]):  # not a submodule
                return self._resolve(base, inner, rest)
            if self._module(f"{base}.{rest[0]}") is None:
                return [Node(base, name) for name, what in found.bindings.items() if isinstance(what, list)], None
            base, rest = f"{base}.{rest[0]}", rest[1:]

    def _hidden(self, node: Node, statement: ast.stmt, module: _Module, local: dict[str, Import]) -> Iterator[str]:
        """Sentences about what the closure cannot see."""

        def is_project_module(target: ast.expr) -> bool:
            chain = _chain(target)
            bound = chain and (local.get(chain[0]) or module.bindings.get(chain[0]))
            return isinstance(bound, Import) and bound.module.split(".")[0] in PROJECT and len(chain or ()) == 1

        def is_outside(target: ast.expr) -> bool:
            chain = _chain(target)
            bound = chain and (local.get(chain[0]) or module.bindings.get(chain[0]))
            return isinstance(bound, Import) and bound.module.split(".")[0] not in PROJECT

        texts = _literals(statement)
        for inner in ast.walk(statement):
            called = _chain(inner.func) if isinstance(inner, ast.Call) else None
            if isinstance(inner, ast.Call) and called and called[-1] in BY_NAME and inner.args:
                of = None if called[-1] in GETTERS else inner.args[0]
                for name in inner.args if of is None else inner.args[1:2]:
                    literal = isinstance(name, ast.Constant) or (isinstance(name, ast.Name) and name.id in texts)
                    if not literal and not (called[-1] == "getattr" and of is not None and is_outside(of)):
                        yield _said(node, inner, f"calls {called[-1]} with a computed name")
                    elif of is not None and is_project_module(of):
                        yield _said(node, inner, f"calls {called[-1]} on a module of this project")
            targets = getattr(inner, "targets", [getattr(inner, "target", None)])
            if isinstance(inner, ast.Assign | ast.AugAssign | ast.AnnAssign):
                for target in targets:
                    if isinstance(target, ast.Attribute) and is_project_module(target.value):
                        yield _said(node, inner, "changes a module of this project")

    def _is_mark(self, module: _Module) -> Any:
        def marks(decorator: ast.expr) -> bool:
            chain = _chain(decorator.func if isinstance(decorator, ast.Call) else decorator)
            bound = chain and module.bindings.get(chain[0])
            return isinstance(bound, Import) and (bound.module, bound.name) in MARKS

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
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def here() -> Code:
    """The code of this checkout, as it was when it was first asked for."""
    return Code()


def _parsed(name: str, path: Path, source: str) -> _Module:
    module = _Module(name, path, source)
    body = ast.parse(source).body
    for statement in body:
        if _is_docstring(statement):
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for bound, imported in _imported(statement):
                module.bindings[bound] = imported
                module.imports.append(imported)
            module.stars |= isinstance(statement, ast.ImportFrom) and (
                statement.level > 0 or any(alias.name == "*" for alias in statement.names)
            )
            continue
        bound_names = _bound(statement)
        if not bound_names or isinstance(statement, ast.If | ast.Try | ast.For | ast.While | ast.With | ast.Match):
            module.loose.append(statement)
        for inner in () if isinstance(statement, ast.FunctionDef | ast.ClassDef) else ast.walk(statement):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                for bound, imported in _imported(inner):
                    module.bindings[bound] = imported
                    module.imports.append(imported)
        for bound in bound_names:
            before = module.bindings.get(bound)
            module.bindings[bound] = [*(before if isinstance(before, list) else []), statement]
    for statement in body:  # a function that says "global x" is part of what x is
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            for inner in ast.walk(statement):
                for bound in inner.names if isinstance(inner, ast.Global) else ():
                    before = module.bindings.get(bound)
                    module.bindings[bound] = [*(before if isinstance(before, list) else []), statement]
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
            yield alias.asname or alias.name, Import(statement.module or "", alias.name)


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement of a module binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Expr | ast.AugAssign | ast.Delete):
        return []
    if isinstance(statement, ast.Assign) and not all(isinstance(t, ast.Name | ast.Tuple) for t in statement.targets):
        return []
    found = []
    for inner in ast.walk(statement):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            found.append(inner.id)
        elif isinstance(inner, ast.FunctionDef | ast.ClassDef) and not isinstance(statement, ast.Assign):
            found.append(inner.name)
    return list(dict.fromkeys(found))


def _local_imports(statement: ast.stmt) -> dict[str, Import]:
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {}
    inner = (node for node in ast.walk(statement) if isinstance(node, ast.Import | ast.ImportFrom))
    return dict(pair for node in inner for pair in _imported(node))


def _global_names(statement: ast.stmt, tables: Sequence[symtable.SymbolTable], is_mark: Any) -> Any:
    """Tells of a name in a definition whether it may be the module's; of other statements, always."""
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return lambda name: True
    own = [table for table in tables if table.get_name() == statement.name]
    names = {name for table in own for name in _globals_of(table)}
    # decorators, defaults and bases belong to the module
    outer: list[ast.expr] = [decorator for decorator in statement.decorator_list if not is_mark(decorator)]
    if isinstance(statement, ast.ClassDef):
        outer += [*statement.bases, *(keyword.value for keyword in statement.keywords)]
    else:
        outer += [*statement.args.defaults, *(value for value in statement.args.kw_defaults if value)]
    names |= {inner.id for part in outer for inner in ast.walk(part) if isinstance(inner, ast.Name)}
    return names.__contains__


def _globals_of(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_global():
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
        if name in MESSAGE or value is None or value == []:
            continue
        if name == "body" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            value = [part for i, part in enumerate(value) if not (i == 0 and _is_docstring(part))]
        elif name == "decorator_list":
            value = [decorator for decorator in value if not is_mark(decorator)]
        elif isinstance(node, ast.Raise) and name == "exc" and isinstance(value, ast.Call):
            value = value.func  # the message is for people
        elif isinstance(node, ast.Assert) and name == "msg":
            continue
        yield name, value


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


def _statements(statement: ast.AST, is_mark: Any) -> Iterator[tuple[str, int]]:
    blocks = ("body", "orelse", "finalbody", "handlers", "cases")
    head, inner = [], []
    for name, value in _fields(statement, is_mark):
        if name in blocks and isinstance(value, list):
            inner += value
        else:
            head.append([name, _text(value, is_mark)])
    if isinstance(statement, ast.Raise):
        return
    if isinstance(statement, ast.ExceptHandler) and isinstance(statement.body[-1], ast.Raise):
        return
    if not isinstance(statement, ast.ExceptHandler | ast.match_case) and not _is_docstring(statement):
        yield _digest([type(statement).__name__, head]), getattr(statement, "lineno", 0)
    for part in inner:
        yield from _statements(part, is_mark)


def _is_docstring(statement: ast.AST) -> bool:
    # also a text below an assignment, which documents it
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _literals(statement: ast.stmt) -> set[str]:
    """The names that loops and comprehensions of a statement give nothing but literal texts."""
    loops = [node for node in ast.walk(statement) if isinstance(node, ast.For | ast.comprehension)]
    return {
        loop.target.id
        for loop in loops
        if isinstance(loop.target, ast.Name)
        and isinstance(loop.iter, ast.Tuple | ast.List)
        and all(isinstance(element, ast.Constant) for element in loop.iter.elts)
    }


def _said(node: Node, place: ast.AST, what: str) -> str:
    return f"{node}, line {getattr(place, 'lineno', 0)}: {what}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
