"""A whole run from one configuration to one run folder.

The public names are listed in `__init__.pyi` and loaded when first used: reading a configuration and drawing
a finished run need no model library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
