"""All edges of a worker: where batches leave for other workers, where theirs arrive, and what lies behind what."""

from __future__ import annotations

from collections.abc import Sequence

from statestore.keys import split_key_groups
from statestore_runtime.operators import Operator
from statestore_runtime.operators.exchange import ExchangeOperator
from statestore_runtime.task.exchange import ExchangeInput, ExchangeOutput
from statestore_runtime.task.network import CREDIT, Network


class Edges:
    """The edges between a job's operators, as one worker has them. A single worker has none: batches go straight on.

    Attributes
    ----------
    inputs, outputs
        The two ends of each edge, in the order of the job.
    """

    def __init__(self, operators: Sequence[Operator], network: Network, max_parallelism: int, *, aligned: bool):
        self._network = network
        self.inputs: list[ExchangeInput] = []
        self.outputs: list[ExchangeOutput] = []
        if network.parallelism > 1:
            groups = split_key_groups(network.parallelism, max_parallelism)
            owners = [worker for worker, part in enumerate(groups) for _ in part]
            exchanges = [operator for operator in operators if isinstance(operator, ExchangeOperator)]
            for number, operator in enumerate(exchanges):
                self.outputs.append(ExchangeOutput(operator, number, network, owners))
                self.inputs.append(ExchangeInput(operator, number, network, aligned=aligned))
        self._behind = self._outputs_behind(operators)

    def _outputs_behind(self, operators: Sequence[Operator]) -> dict[str, list[ExchangeOutput]]:
        by_uid = {output.operator.uid: output for output in self.outputs}
        behind: dict[str, list[ExchangeOutput]] = {}
        for operator in reversed(operators):  # each comes after those whose events it takes
            found: dict[str, ExchangeOutput] = {}
            for consumer, _ in operator.all_consumers():
                if consumer.uid in by_uid:
                    found[consumer.uid] = by_uid[consumer.uid]
                else:
                    found.update({output.operator.uid: output for output in behind[consumer.uid]})
            behind[operator.uid] = list(found.values())
        return behind

    def behind(self, uid: str) -> list[ExchangeOutput]:
        """The outputs that what an operator emits leads to, before any other edge."""
        return self._behind[uid]

    def has_room(self, uid: str) -> bool:
        """Whether another batch may be given to an operator, or what stands for it at the receiving end."""
        return all(output.has_room for output in self._behind[uid])

    def receive(self) -> bool:
        """Put what has arrived to where it belongs; whether there was anything."""
        frames = self._network.receive()
        for worker, frame in frames:
            if frame[0] == CREDIT:
                self.outputs[frame[1]].credit(worker, frame[2])
            else:
                self.inputs[frame[1]].arrive(worker, frame)
        return bool(frames)

    def flush(self) -> bool:
        """Send what waits for more; whether there was any."""
        is_busy = False
        for output in self.outputs:
            is_busy |= output.flush()
        return is_busy
