"""Checks the shapes in annotations while tests run: `install` has jaxtyping and beartype check calls.

Only functions and dataclasses that state a shape are checked. To wrap all of them, as jaxtyping's own import
hook does, takes a third of the time of the tests, and what remains of their annotations mypy has checked. A
function is checked once for each combination of types and shapes of its arguments, which saves a sixth.
"""

import ast
import re
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import wraps
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

PACKAGE = Path(__file__).resolve().parent.parent / "ot_lens"
CHECK = '__import__("jaxtyping").jaxtyped(typechecker=__import__("beartype").beartype)'
CHECK_NEW = f'__import__("tests.shapes", fromlist=["checked"]).checked({CHECK})'
# Elements of a collection among the arguments that are looked at.
LOOKED_AT = 4
F = TypeVar("F", bound=Callable[..., Any])
# Types of arrays, and aliases of the package for types that contain one.
ARRAYS = {"Bool", "Float", "Float64", "Int", "Int64", "Shaped"}
ALIAS = re.compile(rf"^(\w+) = .*\b(?:{'|'.join(sorted(ARRAYS))})\[", re.MULTILINE)


class Checking(ast.NodeTransformer):
    """Adds the check to functions, methods and dataclasses whose annotations state a shape."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Checked within all other decorators; functions inside a function are left out."""
        arguments = node.args
        known = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        known += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
        if self._any_shape([*(one.annotation for one in known), node.returns]):
            node.decorator_list.append(self._parsed(CHECK_NEW, node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """Checked when it is made, if it is a dataclass."""
        fields = [part.annotation for part in node.body if isinstance(part, ast.AnnAssign)]
        if node.decorator_list and self._any_shape(fields):
            node.decorator_list.insert(0, self._parsed(CHECK, node))
        self.generic_visit(node)
        return node

    def _any_shape(self, annotations: Sequence[ast.expr | None]) -> bool:
        return any(shapes_of(ast.unparse(one)) for one in annotations if one is not None)

    def _parsed(self, check: str, node: ast.AST) -> ast.expr:
        return ast.fix_missing_locations(ast.copy_location(ast.parse(check, mode="eval").body, node))


def checked(check: Callable[[F], F]) -> Callable[[F], F]:
    """A decorator that applies a check to calls whose arguments have not been seen yet."""

    def decorate(function: F) -> F:
        strict, seen = check(function), set[Hashable]()

        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            key = look(args), look(kwargs)
            if key in seen:
                return function(*args, **kwargs)
            result = strict(*args, **kwargs)
            seen.add(key)
            return result

        return called  # type: ignore[return-value]

    return decorate


def look(value: Any) -> Hashable:
    """The type of an argument, with shape and dtype of an array, and of the first ones in a collection."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return type(value), tuple(shape), getattr(value, "dtype", None)
    if isinstance(value, Mapping):
        return (type(value), *((key, look(value[key])) for key in list(value)[:LOOKED_AT]))
    if isinstance(value, list | tuple):
        return (type(value), *map(look, value[:LOOKED_AT]))
    return type(value)


class Loader(SourceFileLoader):
    """Compiles a module with its checks, from source: the cached bytecode has none."""

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path), self.path)
        return compile(Checking().visit(tree), self.path, "exec", dont_inherit=True)


class Finder:
    """Finds the modules of ot_lens that state shapes."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("ot_lens."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None and shapes_of(Path(spec.origin).read_text("utf-8")):
            spec.loader = Loader(name, spec.origin)
        return spec


def shapes_of(source: str) -> set[str]:
    """Names in a source that state a shape in an annotation."""
    return SHAPES & set(re.findall(r"\w+", source))


def aliases() -> set[str]:
    """Types of the package that contain an array."""
    return {name for file in PACKAGE.rglob("*.py") for name in ALIAS.findall(file.read_text("utf-8"))}


SHAPES = ARRAYS | aliases()


def install() -> None:
    """Check the modules of ot_lens that are imported from now on; a second call changes nothing."""
    if Finder not in sys.meta_path:
        assert not any(name.startswith("ot_lens.") for name in sys.modules), "ot_lens is imported already"
        sys.meta_path.insert(0, Finder)
