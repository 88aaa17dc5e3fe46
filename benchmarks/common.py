"""What all benchmarks share: where they ran, and how results are told and kept."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def hardware() -> dict[str, Any]:
    """The machine and the versions that decide a timing."""
    import torch

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def tell(name: str, result: dict[str, Any], *, save: bool) -> None:
    """Print the result as the last line of stdout, and keep it under ``results/`` if asked."""
    if save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        kept = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), **hardware(), **result}
        path.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"kept as {path}")
    print(json.dumps(result))
