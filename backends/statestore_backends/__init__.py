"""The backends that come with statestore: memory, rocksdb, filesystem, redis. None imports another."""
