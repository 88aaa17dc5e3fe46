"""How long commands take to start: predict of one photograph from cold, ``--help``, ``import``.

    python benchmarks/start.py                       times here, against the limits
    python benchmarks/start.py --against FOLDER      predict in turn with another checkout
    python benchmarks/start.py --against FOLDER --save

Each run is a process of its own with an output folder of its own, so that nothing is known of the
backbone; with a checkpoint the folder holds that and nothing else. The small CLIP answers, whose
weights come with the package. Runs of both checkouts take turns, so that a busy machine slows both;
the ratio is that of the medians. Beside the clock stands the time of all CPUs, which a busy machine
changes less. The last line of stdout is JSON.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common import tell
from PIL import Image

from dclip.world import shapes

HERE = Path(__file__).resolve().parents[1]
RATIO, HELP_SECONDS, HELP_LINES, IMPORT_SECONDS = 0.6, 0.5, 60, 0.1
SMALL = ["--config", "smoke.yaml", "--train.epochs", "1"]


def timed(words: list[str], checkout: Path) -> tuple[float, float, str]:
    """Seconds by the clock and of all CPUs that a command takes, and what it prints."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, done.stdout


def predicted(
    checkouts: dict[str, Path], repeats: int, photo: Path, checkpoint: Path | None
) -> dict[str, dict[str, list[float]]]:
    """Times of predict, in turn, by checkout."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"seconds": [], "cpu_seconds": []} for name in checkouts
    }
    for _ in range(repeats):
        for name, checkout in checkouts.items():
            with TemporaryDirectory() as folder:
                words = ["-m", "pipeline.predict", str(photo), "--output", folder]
                words += ["--classes", "star,ring,dog", "--backbone", "tiny", "--device", "cpu"]
                words += (
                    ["--zero-shot"] if checkpoint is None else ["--checkpoint", f"{checkpoint}"]
                )
                seconds, cpu, _ = timed(words, checkout)
            found[name]["seconds"].append(round(seconds, 2))
            found[name]["cpu_seconds"].append(round(cpu, 2))
    return found


def told(what: str, value: float, limit: float, unit: str) -> str:
    """A line of the table."""
    return (
        f"{what:<34}{value:>8.2f} {unit:<6} limit {limit:g}  {'ok' if value <= limit else 'OVER'}"
    )


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="folder of another checkout of this project")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each command")
    parser.add_argument("--save", action="store_true")
    flags = parser.parse_args()
    checkouts = {"here": HERE}
    if flags.against:
        checkouts = {"before": flags.against.resolve(), **checkouts}
    result: dict[str, object] = {"repeats": flags.repeats}
    with TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.png"
        Image.fromarray(shapes.scene("test", 3).image).resize((400, 300)).save(photo)
        trained = Path(folder) / "trained"
        for stage in ("extract", "train"):
            timed(["-m", f"pipeline.{stage}", *SMALL, "--output", str(trained)], HERE)
        (file,) = (trained / "checkpoints").glob("*.safetensors")
        checkpoint = shutil.move(file, Path(folder) / file.name)
        for name, given in (("zero_shot", None), ("checkpoint", checkpoint)):
            times = predicted(checkouts, flags.repeats, photo, given)
            result[name] = times
            for checkout, own in times.items():
                print(f"predict, {name}, {checkout}: {own}")
            if flags.against:
                for key in ("seconds", "cpu_seconds"):
                    medians = {one: statistics.median(own[key]) for one, own in times.items()}
                    ratio = medians["here"] / medians["before"]
                    result[f"{name}_{key}_ratio"] = round(ratio, 3)
                    print(told(f"predict, {name}, {key}", ratio, RATIO, "x"))
    stages = sorted(path.stem for path in (HERE / "pipeline").glob("[a-z]*.py"))
    pages = {}
    for stage in stages:
        runs = [timed(["-m", f"pipeline.{stage}", "--help"], HERE) for _ in range(flags.repeats)]
        seconds, cpu = (min(run[at] for run in runs) for at in (0, 1))
        page = runs[0][2]
        pages[stage] = {
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu, 2),
            "lines": page.count("\n"),
        }
        print(told(f"{stage} --help", seconds, HELP_SECONDS, "s"))
        print(told(f"{stage} --help, cpu", cpu, HELP_SECONDS, "s"))
        print(told(f"{stage} --help", page.count("\n"), HELP_LINES, "lines"))
    result["help"] = pages
    others = {
        "dclip --help": ["-m", "pipeline", "--help"],
        "import dclip": ["-c", "import dclip"],
        "python": ["-c", ""],
    }
    for what, words in others.items():
        runs = [timed(words, HERE) for _ in range(flags.repeats)]
        limit = HELP_SECONDS if "help" in what else IMPORT_SECONDS
        for at, key in enumerate(("seconds", "cpu_seconds")):
            least = min(run[at] for run in runs)
            result[f"{what}, {key}"] = round(least, 3)
            print(told(f"{what}, {key}", least, limit, "s"))
    tell("start-cpu", result, save=flags.save)


if __name__ == "__main__":
    main()
