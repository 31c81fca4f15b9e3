"""Whatever alters results alters the fingerprint, or is named as a problem; what cannot alter them does not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lab import data, experiments, fingerprint
from lab.files import ROOT
from lab.fingerprint import Code

USES = "from kadam.a import f\ndef run(x):\n    return f(x)\n"
TWO = {"kadam/a.py": "def f(x):\n    return x\ndef h(x):\n    return -x\n"}


def write(root, files):
    for name, text in {"kadam/__init__.py": "", "lab/__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def closure(root, files):
    return Code(write(root, files)).of_function("lab.runs", "run")


@pytest.fixture
def closures(tmp_path):
    def both(before, after):
        before = {"lab/runs.py": USES, **before}
        return closure(tmp_path / "before", before), closure(tmp_path / "after", {**before, **after})

    return both


def a(text):
    return {"kadam/a.py": text}


def runs(text):
    return {"lab/runs.py": text}


CHANGES = {
    "a constant that a function reads": (
        a("C = 1\ndef f(x):\n    return C * x\n"),
        a("C = 2\ndef f(x):\n    return C * x\n"),
    ),
    "what a name is imported as": (
        {**TWO, **runs("from kadam.a import f, h\ndef run(x):\n    return f(h(x) + 1)\n")},
        runs("from kadam.a import f as h, h as f\ndef run(x):\n    return f(h(x) + 1)\n"),
    ),
    "what a name from outside is imported as": (
        a("from math import sin as g\ndef f(x):\n    return g(x)\n"),
        a("from math import cos as g\ndef f(x):\n    return g(x)\n"),
    ),
    "the same through another module": (
        {**a("from kadam.b import g\ndef f(x):\n    return g(x)\n"), "kadam/b.py": "from math import sin as g\n"},
        {"kadam/b.py": "from math import cos as g\n"},
    ),
    "the same inside a function": (
        a("def f(x):\n    from math import sin as g\n    return g(x)\n"),
        a("def f(x):\n    from math import cos as g\n    return g(x)\n"),
    ),
    "what a module is imported as": (
        {**TWO, "kadam/b.py": "def f(x):\n    return 2 * x\n",
         **runs("import kadam.a as m\ndef run(x):\n    return m.f(x)\n")},
        runs("import kadam.b as m\ndef run(x):\n    return m.f(x)\n"),
    ),
    "a name that shadows a builtin": (
        a("def f(x):\n    return sum(x)\n"),
        a("def f(x):\n    return sum(x)\ndef sum(x):\n    return x[0]\n"),
    ),
    "what a package hands on": (
        {**TWO, "kadam/__init__.py": "from kadam.a import f\n",
         **runs("from kadam import f\ndef run(x):\n    return f(x)\n")},
        {"kadam/__init__.py": "from kadam.a import h as f\n"},
    ),
    "what a module that is used as a value hands on": (
        {**TWO, "kadam/b.py": "from kadam.a import f\n",
         **runs("from kadam import b\nMODULE = b\ndef run(x):\n    return MODULE.f(x)\n")},
        {"kadam/b.py": "from kadam.a import h as f\n"},
    ),
    "one of two imports that a condition chooses from": (
        {**TWO, "kadam/b.py": "def f(x):\n    return 2 * x\n",
         **runs("import os\nif os.sep:\n    from kadam.b import f\nelse:\n    from kadam.a import f\n"
                "def run(x):\n    return f(x)\n")},
        {"kadam/b.py": "def f(x):\n    return 3 * x\n"},
    ),
    "an import that has a substitute": (
        {**TWO, **runs("try:\n    from kadam.a import f\nexcept ImportError:\n    f = None\n"
                       "def run(x):\n    return f(x)\n")},
        a("def f(x):\n    return 3 * x\n"),
    ),
    "a function that another one's import of that name hides": (
        {**TWO, **runs("def g(x):\n    return 1\nif g:\n    def other():\n        from kadam.a import f as g\n"
                       "def run(x):\n    return g(x)\n")},
        runs("def g(x):\n    return 2\nif g:\n    def other():\n        from kadam.a import f as g\n"
             "def run(x):\n    return g(x)\n"),
    ),
    "the module's name in a class, one method of which imports another": (
        {**TWO, **runs("def g(x):\n    return 1\nclass C:\n    def one(self):\n        from kadam.a import f as g\n"
                       "        return g\n    def two(self, x):\n        return g(x)\n"
                       "def run(x):\n    return C().two(x)\n")},
        runs("def g(x):\n    return 2\nclass C:\n    def one(self):\n        from kadam.a import f as g\n"
             "        return g\n    def two(self, x):\n        return g(x)\ndef run(x):\n    return C().two(x)\n"),
    ),
    "a nested function": (
        a("def f(x):\n    def g(y):\n        return y\n    return g(x)\n"),
        a("def f(x):\n    def g(y):\n        return y + 1\n    return g(x)\n"),
    ),
    "a class attribute": (
        a("class C:\n    scale = 1\ndef f(x):\n    return C.scale * x\n"),
        a("class C:\n    scale = 2\ndef f(x):\n    return C.scale * x\n"),
    ),
    "what a class attribute is set from": (
        a("scale = 1\nclass C:\n    scale = scale\ndef f(x):\n    return C.scale * x\n"),
        a("scale = 2\nclass C:\n    scale = scale\ndef f(x):\n    return C.scale * x\n"),
    ),
    "a base class of another module": (
        {"kadam/b.py": "class B:\n    def g(self):\n        return 1\n",
         **a("from kadam.b import B\nclass C(B):\n    pass\ndef f(x):\n    return C().g()\n")},
        {"kadam/b.py": "class B:\n    def g(self):\n        return 2\n"},
    ),
    "that a field of a dataclass is one": (
        a("from dataclasses import dataclass\nfrom typing import ClassVar\n@dataclass\nclass C:\n    a: int = 1\n"
          "    b: int = 2\ndef f(x):\n    return C(x)\n"),
        a("from dataclasses import dataclass\nfrom typing import ClassVar\n@dataclass\nclass C:\n"
          "    a: ClassVar[int] = 1\n    b: int = 2\ndef f(x):\n    return C(x)\n"),
    ),
    "the order of fields": (
        a("from typing import NamedTuple\nclass C(NamedTuple):\n    a: int\n    b: int\n"
          "def f(x):\n    return C(1, 2).a\n"),
        a("from typing import NamedTuple\nclass C(NamedTuple):\n    b: int\n    a: int\n"
          "def f(x):\n    return C(1, 2).a\n"),
    ),
    "what an assignment decorates": (
        a("from functools import lru_cache\ndef g(x):\n    return x\nf = lru_cache(g)\n"),
        a("from functools import lru_cache\ndef g(x):\n    return x + 1\nf = lru_cache(g)\n"),
    ),
    "how an assignment decorates": (
        a("def twice(g):\n    return lambda x: g(g(x))\ndef f(x):\n    return x + 1\n"),
        a("def twice(g):\n    return lambda x: g(g(x))\ndef f(x):\n    return x + 1\nf = twice(f)\n"),
    ),
    "a default argument": (a("def f(x, y=1):\n    return x + y\n"), a("def f(x, y=2):\n    return x + y\n")),
    "a constant that is a default argument": (
        a("C = 1\ndef f(x, y=C):\n    return x + y\n"),
        a("C = 2\ndef f(x, y=C):\n    return x + y\n"),
    ),
    "a lambda in a dict": (
        a("LAWS = {'a': lambda x: x}\ndef f(x):\n    return LAWS['a'](x)\n"),
        a("LAWS = {'a': lambda x: x + 1}\ndef f(x):\n    return LAWS['a'](x)\n"),
    ),
    "a constant that is bound by a tuple": (
        a("A, (B, *C) = 1, (2, 3)\ndef f(x):\n    return C\n"),
        a("A, (B, *C) = 1, (2, 4)\ndef f(x):\n    return C\n"),
    ),
    "when a constant is bound again": (
        a("X = 1\nY = X\nX = 2\ndef f(x):\n    return Y\n"),
        a("X = 1\nX = 2\nY = X\ndef f(x):\n    return Y\n"),
    ),
    "the order of statements that change a list": (
        a("X = []\nX.append(1)\nX.append(2)\ndef f(x):\n    return X\n"),
        a("X = []\nX.append(2)\nX.append(1)\ndef f(x):\n    return X\n"),
    ),
    "when a list is read that is changed": (
        a("X = []\nY = [*X]\nX.append(2)\ndef f(x):\n    return Y\n"),
        a("X = []\nX.append(2)\nY = [*X]\ndef f(x):\n    return Y\n"),
    ),
    "when a default is read that is changed": (
        a("X = 1\ndef f(x, y=X):\n    return y\nX += 2\n"),
        a("X = 1\nX += 2\ndef f(x, y=X):\n    return y\n"),
    ),
    "an assignment to an item": (
        a("X = {}\nX['a'] = 1\ndef f(x):\n    return X\n"), a("X = {}\nX['a'] = 2\ndef f(x):\n    return X\n"),
    ),
    "an assignment to an item beside a name": (
        a("X = {}\nX['a'], unused = 1, 1\ndef f(x):\n    return X\n"),
        a("X = {}\nX['a'], unused = 2, 1\ndef f(x):\n    return X\n"),
    ),
    "an assignment whose value changes something": (
        a("X = {}\nunused = X.setdefault('a', 1)\ndef f(x):\n    return X\n"),
        a("X = {}\nunused = X.setdefault('a', 2)\ndef f(x):\n    return X\n"),
    ),
    "a function that registers itself": (
        a("LAWS = []\ndef law(g):\n    LAWS.append(g)\n@law\ndef one(x):\n    return 1\n"
          "def f(x):\n    return LAWS[0](x)\n"),
        a("LAWS = []\ndef law(g):\n    LAWS.append(g)\n@law\ndef one(x):\n    return 2\n"
          "def f(x):\n    return LAWS[0](x)\n"),
    ),
    "an overload of a generic function": (
        a("from functools import singledispatch\n@singledispatch\ndef f(x):\n    return 1\n"
          "@f.register(int)\ndef _(x):\n    return 1\n"),
        a("from functools import singledispatch\n@singledispatch\ndef f(x):\n    return 1\n"
          "@f.register(int)\ndef _(x):\n    return 2\n"),
    ),
    "a global that a function sets": (
        a("X = 1\ndef set():\n    global X\n    X = 2\nset()\ndef f(x):\n    return X\n"),
        a("X = 1\ndef set():\n    global X\n    X = 3\nset()\ndef f(x):\n    return X\n"),
    ),
    "a definition under a condition": (
        a("import os\nif os.sep == '/':\n    def f(x):\n        return 1\nelse:\n    def f(x):\n        return 2\n"),
        a("import os\nif os.sep == '/':\n    def f(x):\n        return 3\nelse:\n    def f(x):\n        return 2\n"),
    ),
    "a name that a loop binds": (
        a("for X in (1, 2):\n    pass\ndef f(x):\n    return X\n"),
        a("for X in (1, 3):\n    pass\ndef f(x):\n    return X\n")
    ),
    "a name that with binds": (
        a("from contextlib import nullcontext\nwith nullcontext(1) as X:\n    pass\ndef f(x):\n    return X\n"),
        a("from contextlib import nullcontext\nwith nullcontext(2) as X:\n    pass\ndef f(x):\n    return X\n"),
    ),
    "a name that match binds": (
        a("match [1]:\n    case [X]:\n        pass\ndef f(x):\n    return X\n"),
        a("match [2]:\n    case [X]:\n        pass\ndef f(x):\n    return X\n"),
    ),
    "a name that a walrus binds": (
        a("print(X := 1)\ndef f(x):\n    return X\n"), a("print(X := 2)\ndef f(x):\n    return X\n")
    ),
    "a name that a walrus binds in a default": (
        a("def g(y=(X := 1)):\n    pass\ndef f(x):\n    return X\n"),
        a("def g(y=(X := 2)):\n    pass\ndef f(x):\n    return X\n"),
    ),
    "an effect of a module that is imported for it alone": (
        {"kadam/b.py": "import torch\ntorch.set_default_dtype(torch.float32)\n",
         **a("import kadam.b\ndef f(x):\n    return x\n")},
        {"kadam/b.py": "import torch\ntorch.set_default_dtype(torch.float64)\n"},
    ),
    "the same, imported inside a function": (
        {"kadam/b.py": "import torch\ntorch.set_default_dtype(torch.float32)\n",
         **a("def f(x):\n    import kadam.b\n    return x\n")},
        {"kadam/b.py": "import torch\ntorch.set_default_dtype(torch.float64)\n"},
    ),
    "one of two functions that call each other": (
        a("def f(x):\n    return g(x - 1) if x else 1\ndef g(x):\n    return f(x - 1) if x else 2\n"),
        a("def f(x):\n    return g(x - 1) if x else 1\ndef g(x):\n    return f(x - 1) if x else 3\n"),
    ),
    "a value that an error carries": (
        a("class Found(Exception):\n    pass\ndef g(x):\n    raise Found(x)\ndef f(x):\n    g(x)\n"),
        a("class Found(Exception):\n    pass\ndef g(x):\n    raise Found(x + 1)\ndef f(x):\n    g(x)\n"),
    ),
    "a package in front of a module of the same name": (
        TWO, {"kadam/a/__init__.py": "def f(x):\n    return 7\n"},
    ),
    "a kernel": (
        {**a("def f(x):\n    return x\n"), "kadam/a.cpp": "return 1;"}, {"kadam/a.cpp": "return 2;"}
    ),
    "that two modules share a list": (
        {**a("from kadam.b import L\nM = L\ndef f(x):\n    from kadam.c import g\n    return g(M)\n"),
         "kadam/b.py": "L = []\n", "kadam/c.py": "from kadam.b import L\ndef g(m):\n    return L is m\n"},
        {"kadam/c.py": "L = []\ndef g(m):\n    return L is m\n"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_the_fingerprint_knows(closures, what):
    before, after = closures(*CHANGES[what])
    assert before.fingerprint != after.fingerprint
    assert not before.problems and not after.problems


LEAVE_ALONE = {
    "a docstring, a comment, an annotation, the layout": (
        a('def f(x):\n    """One."""\n    return (x + 1)\nC: int = 1\n'),
        a('def f(x: float) -> float:\n    """Two."""\n    # why\n    return x + 1\nC: float = 1\n'),
    ),
    "the words of an error": (
        a('def f(x):\n    assert x, "one"\n    if x < 0:\n        raise ValueError("one")\n    return x\n'),
        a('def f(x):\n    assert x, f"two {x}"\n    if x < 0:\n        raise ValueError(f"two {x!r}, " + "three")\n'
          "    return x\n"),
    ),
    "a definition that nothing uses": (
        TWO,
        a(TWO["kadam/a.py"] + "import math\nUNUSED = math.log(2)\nclass C:\n    f = 3\n"
          "def unused(h=UNUSED):\n    pass\n")
    ),
    "the order of definitions": (TWO, a("def h(x):\n    return -x\ndef f(x):\n    return x\n")),
    "a function that moved": (
        {**a("C = 2\ndef g(x):\n    return C * x\ndef f(x):\n    return g(x)\n")},
        {**a("from kadam.b import g\ndef f(x):\n    return g(x)\n"),
         "kadam/b.py": "C = 2\ndef g(x):\n    return C * x\n"},
    ),
    "the name of a module": (
        {**TWO, **runs("def run(x):\n    from kadam import a as m\n    from kadam.a import f\n    return m.f(f(x))\n")},
        {"kadam/b.py": TWO["kadam/a.py"], **a(""),
         **runs("def run(x):\n    from kadam import b as m\n    from kadam.b import f\n    return m.f(f(x))\n")},
    ),
    "the name of a module that is used as a value": (
        {**TWO, **runs("from kadam import a as m\nM = m\ndef run(x):\n    return M.f(x)\n")},
        {"kadam/b.py": TWO["kadam/a.py"], **a(""),
         **runs("from kadam import b as m\nM = m\ndef run(x):\n    return M.f(x)\n")},
    ),
    "how a function from outside is reached, its name the same": (
        a("from os import path\ndef f(x):\n    return path.join(x)\n"),
        a("import os.path as path\ndef f(x):\n    return path.join(x)\n"),
    ),
    "that a function is handed on": (
        TWO, {"kadam/b.py": "from kadam.a import f\n", **runs(USES.replace("kadam.a", "kadam.b"))}
    ),
    "what declares a run": (
        {**TWO, "lab/experiments/__init__.py": "", **runs("from lab.experiments import run as declare\n"
         "from kadam.a import f\n@declare('one', short={})\ndef run(x):\n    return f(x)\n")},
        runs("from lab.experiments import run as declare\n"
             "from kadam.a import f\n@declare('one', short={'a': 1})\ndef run(x):\n    return f(x)\n"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LEAVE_ALONE)
def test_the_fingerprint_does_not_depend_on(closures, what):
    before, after = closures(*LEAVE_ALONE[what])
    assert before.fingerprint == after.fingerprint
    assert sorted(before.definitions.values()) == sorted(after.definitions.values())
    assert not before.problems and not after.problems


PROBLEMS = {
    "getattr with a computed name": "def f(x):\n    return getattr(x, x.name)(1)\n",
    "getattr by another name": "look = getattr\ndef f(x):\n    return look(x, x.name)\n",
    "getattr of a name that a loop over texts binds, and something else": (
        "def f(x):\n    for n in ('a', 'b'):\n        pass\n    n = x.name\n    return getattr(x, n)\n"
    ),
    "setattr on a module": "from kadam import b\ndef f(x):\n    setattr(b, 'C', 2)\n",
    "an attribute of a module that is changed": "from kadam import b\ndef f(x):\n    b.C = 2\n",
    "the same by its full name": "import kadam.b\ndef f(x):\n    kadam.b.C += 2\n",
    "the same in a tuple": "from kadam import b\ndef f(x):\n    b.C, y = 2, 3\n",
    "a class of another module that is changed": "from kadam.b import D\ndef f(x):\n    D.scale = 2\n",
    "importlib": "import importlib\ndef f(x):\n    return importlib.import_module(x)\n",
    "importlib by another name": "from importlib import import_module as load\ndef f(x):\n    return load(x)\n",
    "exec": "def f(x):\n    exec(x)\n",
    "exec of builtins": "import builtins\ndef f(x):\n    builtins.exec(x)\n",
    "a loop that fills the module": "for n in 'ab':\n    globals()[n] = 1\ndef f(x):\n    return a\n",
    "sys.modules": "import sys\ndef f(x):\n    return sys.modules[x].f\n",
    "sys.modules by another name": "from sys import modules as m\ndef f(x):\n    return m[x].f\n",
    "attrgetter by another name": "from operator import attrgetter as get\ndef f(x):\n    return get(x.name)(x)\n",
    "another program": "import subprocess\ndef f(x):\n    return subprocess.run(x)\n",
    "a star import": "from kadam.b import *\ndef f(x):\n    return C\n",
    "a star import that a package hands on": "from kadam.c import C\ndef f(x):\n    return C\n",
    "a relative import": "from .b import C\ndef f(x):\n    return C\n",
    "a relative import inside a function": "def f(x):\n    from . import b\n    return b.C\n",
    "a module's __getattr__": "def __getattr__(name):\n    return 1\ndef f(x):\n    return 1\n",
    "what another module has no definition of": "from kadam import b\ndef f(x):\n    return b.missing\n",
    "a package as a value": "import kadam\ndef f(x):\n    p = kadam\n    return p.b.C\n",
    "code beside the project": "from tests import beside\ndef f(x):\n    return beside\n",
    "subclasses that nothing names": "class C:\n    pass\ndef f(x):\n    return C.__subclasses__()[0]()\n",
    "a hook of subclasses": "class C:\n    def __init_subclass__(cls):\n        pass\ndef f(x):\n    return C()\n",
    "a docstring that is read": "def f(x):\n    return len(f.__doc__)\n",
    "a message that is read": "def f(x):\n    try:\n        x()\n    except ValueError as e:\n        return str(e)\n",
    "the list of declared runs": "from lab.experiments import RUNS\ndef f(x):\n    return RUNS['a'](x)\n",
}


@pytest.mark.parametrize("what", PROBLEMS)
def test_the_closure_names_what_it_cannot_follow(tmp_path, what):
    files = {"kadam/b.py": "C = 1\nclass D:\n    pass\n", "kadam/c.py": "from kadam.b import *\n",
             "tests/beside.py": "", "lab/experiments/__init__.py": "RUNS = {}\n"}  # fmt: skip
    assert closure(tmp_path, {**files, **runs(USES), **a(PROBLEMS[what])}).problems


def test_what_can_be_followed_is_no_problem(tmp_path):
    text = (
        "import torch\nfrom functools import cache\nfrom operator import itemgetter\n@cache\ndef f(x):\n"
        "    for name in ('a', 'b'):\n        setattr(x, name, getattr(torch, x.dtype))\n"
        "    try:\n        return x.y.z\n    except ValueError as error:\n"
        "        raise TypeError(f'{error}') from error\n"
    )
    found = closure(tmp_path, {**runs(USES), **a(text)})
    assert found.problems == () and found.packages == {"torch"}


# --- this repository ---


@pytest.fixture
def copy(tmp_path):
    for folder in ("kadam", "lab"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def places():
    return {name: (r.function.__module__, r.function.__qualname__) for name, r in experiments.all_runs().items()}


def changed(root):
    code = Code(root)
    return {n for n, p in places().items() if code.of_function(*p).fingerprint != here()[n].fingerprint}


def here():
    return {name: fingerprint.here().of_function(*place) for name, place in places().items()}


def edit(path: Path, before: str, after: str):
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def test_every_declared_run_can_be_followed():
    assert {name: found.problems for name, found in here().items() if found.problems} == {}


@pytest.mark.parametrize(
    ("before", "after", "definition"),
    [
        ("return 1 - alpha**n", "return 2 - alpha**n", "bias_correction"),
        ("(beta, n) ** 0.5 + eps", "(beta, n) ** 0.5 - eps", "root"),
        ("addcmul(x, x, value=1 - beta)", "addcmul(x, x, value=1)", "advance"),
    ],
)
def test_a_constant_of_the_formula_dates_the_runs_that_rest_on_it(copy, before, after, definition):
    edit(copy / "kadam" / "update.py", before, after)
    rest_on_it = {name for name, found in here().items() if f"kadam.update.{definition}" in found.definitions}
    assert changed(copy) == rest_on_it
    assert "k_adam.convnet" in rest_on_it and "k_adam.baseline" not in rest_on_it


def test_the_kernel_dates_the_runs_that_may_take_it(copy):
    with (copy / "kadam" / "cpu_kernel.cpp").open("a") as file:
        file.write("// another one\n")
    assert changed(copy) == {name for name, found in here().items() if "kadam.cpu_kernel.takes" in found.definitions}


def test_what_computes_nothing_dates_no_run(copy):
    update, hyperparameters = copy / "kadam" / "update.py", copy / "kadam" / "hyperparameters.py"
    edit(update, '"""1 - alpha^n: the total', '"""The total')
    edit(update, "    gamma, beta = stage\n", "    gamma, beta = stage  # of one\n")
    edit(update, "def bias_correction(alpha: Number, n: Number) -> Number:", "def bias_correction(alpha, n):")
    edit(update, "Number = float | Tensor\n", "Number = float | Tensor\nUNUSED = 3\n")
    text = hyperparameters.read_text()
    assert "(must" in text
    hyperparameters.write_text(text.replace("(must", "(ought to"))
    assert changed(copy) == set()


def test_a_function_that_moved_dates_no_run(copy):
    update, moved = copy / "kadam" / "update.py", copy / "kadam" / "moved.py"
    start = update.read_text().index("def bias_correction")
    body = update.read_text()[start : update.read_text().index("\ndef ", start)]
    moved.write_text(f"from __future__ import annotations\nfrom kadam.stages import Number\n\n\n{body}")
    edit(update, body, "")
    edit(update, "from torch import Tensor\n", "from torch import Tensor\nfrom kadam.moved import bias_correction\n")
    assert changed(copy) == set()
    edit(moved, "1 - alpha**n", "1 - alpha ** (n + 1)")
    assert "k_adam.convnet" in changed(copy)


MEMBERS = [dict(lr=1e-3, k=2, betas=(0.9, 0.99)), dict(lr=1e-3, k=1)]
POINTS = [[0.99, 0.9], [0.9, 0.5]]
SHORT = {
    "continuous_time.edge": dict(seed=0, steps=4, lr=1e-3),
    "continuous_time.tracking": dict(seed=0, steps=4, lr=1e-3, k=2, batches=True, form="first"),
    "hyperparameters.convnet": dict(points=POINTS, lr=1e-3, seed=0, steps=4),
    "k_adam.baseline": dict(optimizer="schedule-free AdamW", lr=1e-3, seed=0, steps=4, every=2),
    "k_adam.edge_of_stability": dict(k=2, seed=0, steps=4, every=2),
    "k_adam.perceptron": dict(members=MEMBERS, seed=0, steps=4, every=2, norm="layer"),
    "k_adam.stages": dict(k=2, lr=1e-3, seed=0, steps=4, every=2),
    "k_adam.step_costs": dict(rounds=1),
    "meta_adaptive.direct_convnet": dict(arm="b", lrs=[1e-3], weight_decay=0.1, seed=0, steps=4, every=2),
    "meta_adaptive.sphere": dict(laws=["adam"], lr=1e-3, weight_decay=0.1, gamma=0.9, seed=0, steps=4),
    "stable_region.quadratic": dict(betas=[0.99], gammas=[0.9], lrs=[0.1], condition=10.0),
    "stable_region.transformer": dict(pairs=POINTS, seed=0, steps=3, lr=1e-3, watched=2),
}


def called(name, arguments):
    """Every function and class of this project that a run calls, as the closure names them."""
    found = set()

    def look(frame, event, _):
        code = frame.f_code
        module = frame.f_globals.get("__name__", "")
        top = code.co_qualname.split(".")[0]
        if event == "call" and module.split(".")[0] in fingerprint.PROJECT and top in vars(sys.modules[module]):
            found.add(f"{module}.{top}")

    run = experiments.all_runs()[name]
    short = run.shortened(arguments)
    if run.data:
        data.checksum(run.data)  # once, and not under the profiler
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.setprofile(look)
    try:
        run.function(**short)
    finally:
        sys.setprofile(None)
        torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("name", SHORT)
def test_whatever_a_run_calls_is_in_its_closure(name):
    found = called(name, SHORT[name])
    place = ".".join(places()[name])
    assert place in found
    assert found <= set(here()[name].definitions)


def test_the_data_that_a_run_reads_is_the_data_that_it_declares():
    read = {n: {s for s in data.SETS if f"lab.data.{s}" in found.definitions} for n, found in here().items()}
    assert read == {name: {run.data} - {None} for name, run in experiments.all_runs().items()}


def test_every_python_gives_the_same_fingerprints(tmp_path):
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from lab.fingerprint import Code\n"
        "print(json.dumps([Code().of_function(*place).fingerprint for place in json.loads(sys.argv[2])]))"
    )
    for python in ("python3.11", "python3.12", "python3.13"):
        if not shutil.which(python) or subprocess.run([python, "-c", ""], capture_output=True).returncode:
            continue  # not on this machine
        words = [python, "-B", "-c", script, str(ROOT), json.dumps(list(places().values()))]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [found.fingerprint for found in here().values()]
