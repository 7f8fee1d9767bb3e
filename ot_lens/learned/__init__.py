"""Maps that are trained by gradient through the model: one file per method, with its record.

Every module of this package is imported, so that a new method is one new file.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
