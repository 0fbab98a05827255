"""Checkpoints read from outside: without their store, its lock or the program that made them."""
