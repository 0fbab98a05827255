"""How often each word has been seen, in all the text files given.

TEXT_FILES="*.jsonl" statestore run examples/word_count.py

Each line of a file is a JSON object with a "text".
"""

import os

from statestore_runtime import FileSource, Job

job = Job("word-count")
(
    job.source(FileSource(os.environ.get("TEXT_FILES", "lines.jsonl")))
    .flat_map(lambda line: [(word, 1) for word in line["text"].lower().split()])
    .key_by(lambda pair: pair[0], str)
    .reduce(lambda seen, new: (seen[0], seen[1] + new[1]), tuple[str, int])
    .print()
)
