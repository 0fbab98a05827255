"""Adds entries to Redis Streams, and reads them."""

from __future__ import annotations

import itertools


def add(client, stream, *numbers):
    for number in numbers:
        client.xadd(stream, {"n": number}, id=f"{number}-1")


def numbers(events):
    return [int(event["n"]) for event in events]


def some(reading, most=100):
    """What there is just now."""
    return numbers(itertools.chain(*itertools.takewhile(bool, (reading.next_batch() for _ in range(most)))))
