"""Which part of the method does what: trainings that differ from the recipe in one thing each.

Rows are data (:mod:`pipeline.settings.rows`); what is missing of their trainings is trained by
:mod:`pipeline.work.ablation`.
"""

from pipeline.records.ablations import Ablation
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
    lines = plan.described(config.ablate.pack)
    lines += [
        f"  {row.study:18} {row.label:22} {row.trained.loop.epochs} epochs, preset "
        f"{row.trained.loop.preset}"
        for row in plan.rows
    ]
    return "\n".join(lines)
