"""Configurations, vocabularies and prepared data of nanochat as Python classes.

    from nanochat_gopy import introspect

    print(introspect.preset("nano-125m").weights())

The extension in it exports the C interface too. A process may have only one Go runtime: package nanochat uses this
one if it finds it, and once that has loaded a library of its own, this package cannot be imported.
"""

import sys

_library = getattr(sys.modules.get("nanochat._library"), "_loaded", None)
if _library is not None:
    raise ImportError(
        f"{_library.path} is loaded already, and a process may have only one Go runtime; "
        "import nanochat_gopy before the first model is loaded"
    )
