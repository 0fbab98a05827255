"""What carries out a JobManager's decisions: all within this process, or with a process for each worker."""
