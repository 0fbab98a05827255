"""For tests of backends and of programs that use statestore: shipped, so that third parties can use the same suite."""
