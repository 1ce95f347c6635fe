"""What a machine is, whether the kernels are right on it, and how fast they are."""
