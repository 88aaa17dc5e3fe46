"""Methods side by side, over seeds: what each reaches on the test split, and what it costs.

Rows are methods by name, or data (:mod:`pipeline.settings.rows`); what is missing of their
trainings is trained by :mod:`pipeline.work.comparison`.
"""

from pipeline.cluster.address import require_cluster
from pipeline.records.ablations import Comparison
from pipeline.settings.config import Config
from pipeline.terminal.cli import Report


def run(config: Config) -> Report:
    """Train what is missing, write table and pictures, record all in MLflow, print the table."""
    plan = Comparison(config)
    if len(plan.done()) < len(plan.trainings):
        require_cluster()  # what follows takes seconds to load
    from pipeline.work import comparison

    return comparison.run(config, plan)


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    plan = Comparison(config)
    lines = plan.described(config.compare.pack)
    for row in plan.rows:
        how = {
            "loop": f"{row.trained.loop.epochs} epochs, preset {row.trained.loop.preset}",
            "itself": "trained by itself",
            None: "not trained",
        }[row.trained.own.trained_by]
        partner = "" if row.against is None else f", compared with {row.against}"
        lines.append(f"  {row.title[0]:24} {row.label:24} {how}{partner}")
    return "\n".join(lines)
