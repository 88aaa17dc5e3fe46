"""Ray: starting or joining it, choosing the device, and pools of actors that work through a list.

Ray reads some of its environment when it is imported. So that is set here, which Python runs before
any module of this package; `pipeline.work`, the only other package that imports Ray, imports this
one first. What the user has set stays.
"""

import os

# Workers at the driver's priority (Ray's default is nice +15), quick polls of Ray Train, which an
# elastic training otherwise lets wait a minute for workers of a node it has just lost, quiet
# start-up. glibc keeps the memory that tensors free: else every large
# one is mapped and zeroed page by page anew, and a CPU encodes a fifth more slowly.
# On a busy machine Ray's parts find each other later than the 30 or 60 s it gives them (what is
# no setting: _patience).
START_SECONDS = 180
_IS_LOCAL = os.environ.get("RAY_ADDRESS", "").strip() in ("", "local")
_ENVIRONMENT = {
    "RAY_agent_register_timeout_ms": str(1000 * START_SECONDS),
    "RAY_gcs_server_port_wait_time_s": str(START_SECONDS),
    "RAY_raylet_start_wait_time_s": "5",  # of one look; a dead node is noticed between two
    "RAY_worker_register_timeout_seconds": str(START_SECONDS),
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(START_SECONDS),
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "OMP_WAIT_POLICY": "PASSIVE",  # as in the command line: threads that wait do not spin
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # it looks out for nodes that are about to be taken away, in a process of its own
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0" if _IS_LOCAL else "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a sweep; Tune would go on to its results
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}

for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
