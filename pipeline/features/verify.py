"""Reading every byte of features and comparing it with the checksum it was written with."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dclip.store.shards import Sidecar, check_shard, file_problem, shard_name, sidecar_digest
from dclip.store.verified import Verified, forget, settled_state
from pipeline.features.copies import FEATURES, place_of_copy, verified_folder
from pipeline.features.plan import FeaturePlan, finished, own_manifest, remove_shards
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress

log = logging.getLogger(__name__)


def verify(plans: Sequence[FeaturePlan], output: Path, *, repair: bool) -> None:
    """Read every byte of all shards and compare it with the checksum it was written with.

    Whatever was found before does not count, and what is found now is kept for other commands.

    Args:
        plans: What to look at.
        output: The output folder.
        repair: Delete what is damaged, to be made again, instead of raising.

    Raises:
        StageError: A shard is damaged or missing; the message names the first ones.
    """

    def look(plan: FeaturePlan, number: int, sidecar: Sidecar | None) -> tuple[str, Any]:
        path = plan.folder / shard_name(number)
        before = None
        if isinstance(path, Path) and path.is_file():
            before = settled_state(path)
            _drop_from_memory(path)
        return check_shard(plan.folder, number, sidecar), before

    lines: list[str] = []
    records = verified_folder(output)
    for plan in plans:
        # first, in case this is stopped; of a remote folder, what is known of its copy
        local = plan.folder
        if not isinstance(local, Path):
            local = place_of_copy(local, output / FEATURES)
        forget(records, local)
        sidecars = finished(plan)
        manifest = own_manifest(plan)
        entries = dict(enumerate(manifest.shards if manifest else []))
        damaged: list[int] = []
        found: list[str] = []
        sound = (
            Verified(records, plan.folder, manifest)
            if manifest is not None and isinstance(plan.folder, Path)
            else None
        )
        with (
            progress(f"verify {plan.name}", plan.num_shards, "shards") as bar,
            ThreadPoolExecutor(4) as threads,
        ):
            checks = threads.map(look, [plan] * len(sidecars), range(len(sidecars)), sidecars)
            for number, (problem, before) in enumerate(checks):
                sidecar, entry = sidecars[number], entries.get(number)
                if not problem and sidecar is not None and entry is not None:
                    if entry.sidecar and entry.sidecar != sidecar_digest(sidecar):
                        problem = "its sidecar is not the one that the manifest speaks of"
                    elif (entry.sha256, entry.bytes) != (sidecar.sha256, sidecar.bytes):
                        problem = "it is not the one that the manifest speaks of"
                if problem:
                    damaged.append(number)
                    found.append(f"{plan.folder / shard_name(number)}: {problem}")
                elif sound is not None and entry is not None:
                    sound.add(entry, before)
                bar.advance(1)
        if not damaged:
            if manifest is None:
                found.append(f"{plan.folder}: the manifest is missing or of another run")
            else:
                for name, sha256 in manifest.files.items():
                    problem = file_problem(plan.folder / name, None, sha256)
                    if problem:
                        found.append(f"{plan.folder / name}: {problem}")
        if sound is not None:
            sound.write()
        if repair and found:
            remove_shards(plan, damaged)
        lines += found
    if lines and not repair:
        shown = "\n  ".join(lines[:10]) + (f"\n  and {len(lines) - 10} more" * (len(lines) > 10))
        raise StageError(f"damaged or missing:\n  {shown}\n--repair makes them again")
    for line in lines:
        log.warning("extract: %s; it is made again", line)


def _drop_from_memory(path: Path) -> None:
    """Have the system read a file from its disk again, not from what it keeps of it in memory."""
    if hasattr(os, "posix_fadvise"):  # elsewhere there is no way to ask
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
