"""Other systems than Linux: nothing that only Linux has is needed to import a module."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("dclip", "pipeline")
    for path in sorted((ROOT / package).rglob("*.py"))
]

# what others import may be of this system; ours is then imported anew
CODE = """
import importlib, os, signal, sys

modules = sys.argv[1:]
for name in modules:
    importlib.import_module(name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("getuid", "geteuid", "getloadavg", "sysconf", "sched_getaffinity", "posix_fadvise",
             "killpg", "setsid", "fork", "O_DIRECT", "statvfs", "uname"):
    if hasattr(os, name):
        delattr(os, name)
del signal.SIGKILL
for sys.platform in ("win32", "darwin"):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("dclip", "pipeline")]:
        del sys.modules[name]
    for name in modules:
        importlib.import_module(name)
    print(sys.platform, len(modules))
"""


@pytest.mark.slow
def test_every_module_is_imported_on_other_systems() -> None:
    command = [sys.executable, "-W", "ignore", "-c", CODE, *MODULES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    count = len(MODULES)
    assert done.stdout.splitlines() == [f"win32 {count}", f"darwin {count}"], done.stderr
    assert count > 60
