"""The write-ahead log: what is committed is here first, whole and synced, before any backend sees it."""
