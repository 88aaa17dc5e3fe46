"""What stages do once there is work: here torch and Ray are loaded."""
