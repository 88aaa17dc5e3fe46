"""Which cluster ``RAY_ADDRESS`` names, and whether it is there; Ray is not loaded to say none."""

import os
import re

from pipeline.terminal.errors import UsageError

_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5})")


def cluster_address() -> str:
    """Value of ``RAY_ADDRESS``, well formed; empty where Ray shall run on this machine.

    Raises:
        UsageError: It is neither ``host:port`` nor ``auto`` or ``local``.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return ""
    if address == "auto":
        return address
    if address.startswith("ray://"):
        raise UsageError(
            f"RAY_ADDRESS={address}: Ray Client cannot run the stages; use HOST:PORT of the head "
            "node (port 6379 by default) on a machine of the cluster"
        )
    port = _PORT.fullmatch(address)
    if port is None or not 0 < int(port[1]) < 1 << 16:
        raise UsageError(
            f"RAY_ADDRESS={address!r} is not HOST:PORT of a cluster's head node, auto or local"
        )
    return address


def require_cluster() -> None:
    """Find out, before anything is loaded, whether the cluster of ``RAY_ADDRESS`` is there.

    Raises:
        UsageError: ``RAY_ADDRESS`` is no address of a cluster.
        StageError: The cluster cannot be reached.
    """
    address = cluster_address()
    if address:
        # takes a second to load, and most commands run on this machine
        from pipeline.cluster.head import ask_head

        ask_head(address)
