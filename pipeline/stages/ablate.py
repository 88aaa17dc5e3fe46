"""Which part of the method does what: trainings that differ from the recipe in one thing each.

Rows are data (:mod:`pipeline.settings.rows`); what is missing of their trainings is trained by
:mod:`pipeline.work.ablation`.
"""

from pipeline.features.plan import is_complete
from pipeline.records.ablations import Ablation, packs
from pipeline.settings.config import Config
from pipeline.terminal.cli import Report


def run(config: Config) -> Report:
    """Train what is missing, write table and picture, record all in MLflow, print the table."""
    plan = Ablation(config)
    from pipeline.work import ablation

    return ablation.run(config, plan)


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    plan = Ablation(config)
    done = plan.done()
    left = [training for name, training in plan.trainings.items() if name not in done]
    state = {True: "complete", False: "not extracted yet"}
    lines = [
        f"features {plan.train.folder} ({state[is_complete(plan.train)]})",
        f"scored on {plan.test.folder} ({state[is_complete(plan.test)]})",
        f"{plan.name}: {len(plan.rows)} rows, {len(plan.trainings)} trainings of seeds "
        f"{plan.seeds[0]} to {plan.seeds[-1]}, {len(done)} done; the others in "
        f"{len(packs(left, config.ablate.pack))} packs",
    ]
    lines += [
        f"  {row.study:18} {row.label:22} {row.trained.loop.epochs} epochs, preset "
        f"{row.trained.loop.preset}"
        for row in plan.rows
    ]
    return "\n".join(lines)
