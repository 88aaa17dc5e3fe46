"""What each command plans and says; none of them loads torch or Ray before there is work."""
