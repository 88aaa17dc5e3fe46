"""Asking a cluster's head node whether it is there, in seconds; Ray itself asks for minutes."""

import os

import grpc
import psutil
import ray
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled

from dclip.words import told
from pipeline.terminal.errors import StageError

REMEDY = "start the cluster, or unset RAY_ADDRESS to run on this machine"
_PROBE_SECONDS = 5.0  # a cluster that takes longer to say its name is not there


def ask_head(address: str) -> None:
    """Find out in seconds whether a head node is at the address, and a node on this machine.

    Nothing is asked where this process has joined already.

    Raises:
        StageError: The cluster is not there, or this machine is no part of it.
    """
    if ray.is_initialized():
        return
    try:  # of auto: what `ray start` noted down
        head = str(canonicalize_bootstrap_address(address))
        is_found = address == "auto" and "RAY_AUTH_MODE" not in os.environ  # Ray then uses a token
        loader = AuthenticationTokenLoader.instance()
        token = loader.get_token_for_http_header(ignore_auth_mode=is_found)
    except Exception as error:  # Ray's own have no class in common
        raise StageError(
            f"cannot join the cluster of RAY_ADDRESS={address}: {told(error)}; {REMEDY}"
        ) from None
    shown = address if address == head else f"{address} ({head})"
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        with grpc.insecure_channel(head, [("grpc.enable_http_proxy", 0)]) as channel:
            ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
            try:
                ask(b"", timeout=_PROBE_SECONDS, metadata=tuple(token.items()))
            except grpc.RpcError as error:
                why, what = {
                    "UNAVAILABLE": ("nothing answers there", REMEDY),
                    "DEADLINE_EXCEEDED": (f"no answer within {_PROBE_SECONDS:.0f} s", REMEDY),
                    "UNIMPLEMENTED": (
                        "what answers is no head node",
                        "give its address and port, 6379 by default",
                    ),
                    "UNAUTHENTICATED": (
                        "it refuses our token" if token else "it asks for a token",
                        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to what `ray get-auth-token` "
                        "prints on the head node",
                    ),
                }.get(error.code().name, (told(error), REMEDY))
                raise StageError(
                    f"cannot join the cluster of RAY_ADDRESS={shown}: {why}; {what}"
                ) from None
    if not any("raylet" in process.name() for process in psutil.process_iter()):
        raise StageError(
            f"no node of the cluster RAY_ADDRESS={shown} runs on this machine; join it with "
            f"`ray start --address={head}`, or run the command on one of its nodes"
        )
