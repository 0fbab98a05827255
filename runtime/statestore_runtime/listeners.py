"""A job's own listeners: told of checkpoints where the JobManager is, once for the whole job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from statestore_runtime.functions import CheckpointListener
from statestore_runtime.messages import CheckpointCompleted, CheckpointFailed, Message, Started

logger = logging.getLogger("statestore_runtime.listeners")

Emit = Callable[[Message], object]


def with_listeners(listeners: Sequence[CheckpointListener], emit: Emit) -> Emit:
    """`emit` itself, which also tells the listeners; one that fails is logged, and the job goes on."""

    def emit_and_tell(message: Message) -> None:
        emit(message)
        for listener in listeners:
            try:
                _tell(listener, message)
            except Exception:
                logger.exception("a checkpoint listener of the job failed: %s", type(listener).__name__)

    return emit_and_tell if listeners else emit


def _tell(listener: CheckpointListener, message: Message) -> None:
    match message:
        case CheckpointCompleted(checkpoint=checkpoint):
            listener.on_checkpoint_complete(checkpoint)
        case CheckpointFailed(checkpoint=checkpoint, reason=reason):
            listener.on_checkpoint_failed(checkpoint, reason)
        case Started(restored_checkpoint=int(restored)):
            listener.on_restore(restored)
