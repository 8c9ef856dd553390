"""What a graph is, and how code writes one."""
