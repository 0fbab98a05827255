"""The same work with statestore, everything durable: the log synced at each commit, exactly-once checkpoints every second."""
