"""Stories of event time for Hypothesis: events out of order, watermarks, checkpoints, crashes; and how they are run."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.runtime.driving import Driver

CHECKPOINT, CRASH, END = "CHECKPOINT", "CRASH", "END"

KEYS = ["a", "b", "c"]


@st.composite
def stories(draw, horizon=60, inputs=1):
    """Steps: a batch as ("events", input, [(key, time, number)]), ("watermark", time), or one of the words above."""
    steps, watermark, number = [], 0, 0
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["events", "events", "events", "watermark", "watermark", CHECKPOINT, CRASH]))
        if kind == "events":
            times = draw(st.lists(st.integers(max(0, watermark - 15), horizon), min_size=1, max_size=6))
            keys = draw(st.lists(st.sampled_from(KEYS), min_size=len(times), max_size=len(times)))
            numbers = range(number, number := number + len(times))
            steps.append(("events", draw(st.integers(0, inputs - 1)), list(zip(keys, times, numbers, strict=True))))
        elif kind == "watermark":
            watermark = draw(st.integers(watermark, horizon))
            steps.append(("watermark", watermark))
        else:
            steps.append((kind,))
    if draw(st.booleans()):
        steps.append((END,))
    return steps


def run(steps, job, taken, open_store, clock=None):
    """Run a story and return what was emitted in each step; after a crash it goes on from the last checkpoint.

    `taken` is the list that the job's sink appends to, or a tuple of such lists.
    """
    lists = taken if isinstance(taken, tuple) else (taken,)
    driver = Driver(job, open_store("none"), clock)
    driver.checkpoint()
    results, saved, crashed, place = [], 0, set(), 0
    while place < len(steps):
        for one in lists:
            one.clear()
        match steps[place]:
            case ("events", source, events):
                uid = driver.sources[source].uid
                driver.push([(key, time, number) for key, time, number in events], [time for _, time, _ in events], uid)
            case ("watermark", watermark):
                driver.watermark(watermark)
            case (word,) if word == END:
                driver.end()
            case (word,) if word == CHECKPOINT:
                driver.checkpoint()
                saved = place + 1
            case (word,) if word == CRASH and place not in crashed:
                crashed.add(place)
                driver = Driver(job, open_store("latest"), clock)
                place = saved
                del results[saved:]
                continue
        results.append(tuple(list(one) for one in lists) if isinstance(taken, tuple) else list(taken))
        place += 1
    return results, driver
