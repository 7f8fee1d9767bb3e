"""Maps that are trained by gradient through the model: one file per method, with its record.

Every module of this package is imported, so that a new method is one new file.
"""

from importlib import import_module
from pkgutil import iter_modules

from ot_lens.learned.cone import fit_cone as fit_cone
from ot_lens.learned.dimension import cone_dimension as cone_dimension
from ot_lens.learned.independence import representational_independence as representational_independence
from ot_lens.learned.linear_act_joint import fit_linear_act_joint as fit_linear_act_joint
from ot_lens.learned.rdo import fit_rdo as fit_rdo

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
