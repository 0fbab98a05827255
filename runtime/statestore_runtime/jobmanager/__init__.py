"""The JobManager: decides when a job's workers start, checkpoint, stop, and start again; it does none of it itself."""
