"""A running job from outside: its JobManager listens on a socket of the local machine, and commands ask it there."""
