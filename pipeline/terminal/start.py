"""How the process of a command starts in less time: what nobody asked for is loaded when asked for.

Importing open_clip takes longer than all else of a short command, and most of that is for others:
torchvision brings torch's compiler for one function of detection, timm all of its architectures,
transformers its text towers. CLIP's own models need none of it. So, in the process of a command
(never where this package is imported as a library):

* packages in `_LATER` begin without their ``__init__``, which runs as soon as anybody asks for an
  attribute of theirs, or for a module other than those that do without it;
* open_clip is imported as where transformers are not installed, which it provides for; what it has
  for them is read again when the first such text tower is built.
"""

import atexit
import gc
import importlib
import os
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_LATER = {  # packages, and of each the modules that need nothing of its __init__
    "timm": ("layers", "version"),
    "torchvision": ("models", "ops", "transforms", "utils"),
    "torchvision.models": ("feature_extraction",),
    "torchvision.ops": ("misc",),
}
_OBJECTS = 20_000  # made between two looks for garbage: importing makes many, and none is garbage


def main(stage: str, argv: Sequence[str] | None = None) -> int:
    """As `pipeline.terminal.cli.main`, which is loaded here; the process begins with `quicken`.

    Args:
        stage: Name of the module, as in ``python -m pipeline.<stage>``.
        argv: Words of the command line; if left out ``sys.argv[1:]``, and the process is ours.

    Returns:
        Exit code of the process.
    """
    if argv is None:
        quicken()
    done: int = importlib.import_module("pipeline.terminal.cli").main(stage, argv)
    return done


def quicken() -> None:
    """Let this process import less, and look for garbage less often, at its end not at all.

    To be called by whoever owns the process; a second time does nothing.
    """
    if any(isinstance(finder, _Later) for finder in sys.meta_path):
        return
    gc.set_threshold(_OBJECTS, *gc.get_threshold()[1:])
    atexit.register(_leave)
    # it would look for plugins in all packages that are installed
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    sys.meta_path.insert(0, _Later())


def _leave() -> None:
    """Let the system take all memory back at once, where nothing counts what is given back."""
    if "triton" not in sys.modules:  # it tells of everything that is left, on stderr
        gc.freeze()


class _Later(MetaPathFinder):
    """Finds packages whose ``__init__`` is put off, and runs those of them that are needed."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[ModuleType, Loader]] = {}
        self._is_without_transformers = False
        self._lock = threading.RLock()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A package that is put off, or None: then others find it."""
        if name == "transformers" and self._is_without_transformers:
            raise ModuleNotFoundError("left out for now", name=name)
        parent, _, leaf = name.rpartition(".")
        if parent in self._pending and leaf not in _LATER[parent]:
            self._complete(name.partition(".")[0])
            if name in sys.modules:  # loaded on the way: not a second time
                return ModuleSpec(name, _There(sys.modules[name]), is_package=True)
        if name not in _LATER and name != "open_clip":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            own = _OpenCLIP if name == "open_clip" else _PutOff
            spec.loader = own(spec.loader, self)
        return spec

    def put_off(self, module: ModuleType, loader: Loader) -> None:
        """Leave the ``__init__`` of a package for when it is needed."""
        name = module.__name__

        def ask(attribute: str) -> Any:
            is_name = attribute.startswith("__") and attribute not in ("__all__", "__version__")
            if not is_name:  # others are what the interpreter asks of any module
                self._complete(name.partition(".")[0])
                if attribute in vars(module):
                    return vars(module)[attribute]
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

        vars(module)["__getattr__"] = ask
        self._pending[name] = module, loader

    def _complete(self, top: str) -> None:
        """Run what was put off of a package and of those in it."""
        with self._lock:
            for name in sorted(self._pending):  # outer ones first
                if name.partition(".")[0] == top and name in self._pending:
                    module, loader = self._pending.pop(name)
                    del vars(module)["__getattr__"]
                    loader.exec_module(module)

    def without_transformers(self, module: ModuleType, loader: Loader) -> None:
        """Import open_clip as where there are no transformers."""
        self._is_without_transformers = "transformers" not in sys.modules
        try:
            loader.exec_module(module)
        finally:
            was_without, self._is_without_transformers = self._is_without_transformers, False
        if was_without:
            user: Any = sys.modules["open_clip.model"]
            user.HFTextEncoder = _text_encoder


def _text_encoder(*args: Any, **settings: Any) -> Any:
    """The first text tower of transformers: from then on all is as it would have been."""
    for name in ("hf_model", "coca_model"):
        again = importlib.reload(sys.modules[f"open_clip.{name}"])
        if name == "hf_model":
            encoder = again.HFTextEncoder
    user: Any = sys.modules["open_clip.model"]
    user.HFTextEncoder = encoder
    return encoder(*args, **settings)


class _PutOff(Loader):
    """Makes a package without running it."""

    def __init__(self, own: Loader, finder: _Later) -> None:
        self._own, self._finder = own, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        self._finder.put_off(module, self._own)


class _There(Loader):
    """Gives a module that is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__
        module.__spec__ = None  # else importlib would take that, and run the module again

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002 - as loaders have it
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _OpenCLIP(_PutOff):
    """Runs open_clip as where there are no transformers."""

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        self._finder.without_transformers(module, self._own)
