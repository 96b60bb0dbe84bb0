"""The ``ddfm-fast`` command: a module per command, and one list of options.

Heavy imports happen inside the commands, so that ``--help`` is quick.
"""

from ..faces import face

__all__ = ["main"]

__getattr__, __dir__ = face(__name__, {"main": "app"})
