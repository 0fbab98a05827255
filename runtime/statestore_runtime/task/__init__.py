"""What a worker does: the operators of a job over its share of key groups, splits and output, with one store and one thread."""
