"""Checks the shapes in annotations while tests run: `install` has jaxtyping and beartype check each call.

Only functions and dataclasses that state a shape are checked. To wrap all of them, as jaxtyping's own import
hook does, takes a third of the time of the tests, and what remains of their annotations mypy has checked.
"""

import ast
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

PACKAGE = Path(__file__).resolve().parent.parent / "ot_lens"
CHECK = '__import__("jaxtyping").jaxtyped(typechecker=__import__("beartype").beartype)'
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
            node.decorator_list.append(self._check(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """Checked when it is made, if it is a dataclass."""
        fields = [part.annotation for part in node.body if isinstance(part, ast.AnnAssign)]
        if node.decorator_list and self._any_shape(fields):
            node.decorator_list.insert(0, self._check(node))
        self.generic_visit(node)
        return node

    def _any_shape(self, annotations: Sequence[ast.expr | None]) -> bool:
        return any(shapes_of(ast.unparse(one)) for one in annotations if one is not None)

    def _check(self, node: ast.AST) -> ast.expr:
        check = ast.parse(CHECK, mode="eval").body
        return ast.fix_missing_locations(ast.copy_location(check, node))


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
