"""The least that the same work costs without statestore. None of it logs or checkpoints, and nothing of it survives."""
