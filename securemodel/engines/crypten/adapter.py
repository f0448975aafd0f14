"""Makes `import crypten` work on a current torch, and closes what must not be used of it."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

from protocols.errors import ConfigError, explain

VERSION = "0.4.1"
_NEEDED = ("crypten", "omegaconf", "onnx", "yaml")
_MOVED = "torch.onnx._internal.registration"
_PICKLING = ("send_obj", "recv_obj", "broadcast_obj")


def missing() -> list[str]:
    """Names of packages that CrypTen needs and that are not installed."""
    return [name for name in _NEEDED if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a spec stands in its place
        return False


def require() -> None:
    """Raises ConfigError, with what to do, unless CrypTen and what it needs are installed."""
    if absent := missing():
        raise ConfigError(
            explain(
                "CrypTen is not installed",
                why=f"there is no package {', '.join(absent)} in {sys.prefix}; it is optional",
                fix="make setup-crypten",
            )
        )


def load() -> ModuleType:
    """The package crypten.

    It imports a registry of ONNX symbols from where torch no longer has it. An empty stand-in is enough, as only
    its ONNX front end would use it, which is not used here. Its transport of Python objects by pickle is replaced
    by a refusal. Raises ConfigError if CrypTen is absent or of another version.
    """
    require()
    stands_in = not _is_there(_MOVED)
    if stands_in:
        sys.modules[_MOVED] = _stand_in()
    try:
        crypten = importlib.import_module("crypten")
        communicator = importlib.import_module("crypten.communicator").DistributedCommunicator
    except ImportError as problem:
        raise ConfigError(
            explain("CrypTen cannot be imported", why=str(problem), fix="make setup-crypten installs what it needs")
        ) from problem
    finally:
        if stands_in:
            del sys.modules[_MOVED]
    if crypten.__version__ != VERSION:
        raise ConfigError(
            explain(f"this is CrypTen {crypten.__version__}, not {VERSION}", fix="make setup-crypten installs that one")
        )
    for name in _PICKLING:
        setattr(communicator, name, _refuse)
    return crypten


def _stand_in() -> ModuleType:
    module = ModuleType(_MOVED)
    vars(module)["registry"] = SimpleNamespace()
    return module


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise ConfigError("CrypTen would pickle an object between the parties, which is not allowed here")
