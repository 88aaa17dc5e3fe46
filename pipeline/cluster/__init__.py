"""Ray: its start, where workers are put, and pools of them."""
