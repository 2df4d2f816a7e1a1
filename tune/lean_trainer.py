"""Ray's TorchTrainer without the helper processes that this project has no use for, because each costs its start-up.

Every helper is a process that imports ray.train, pandas and ray.data: about as much as a training worker itself.
The overridden methods are Ray's own, not public; should a later Ray not call them, the trainer works all the same
and only starts more slowly.
"""

from __future__ import annotations

from typing import Any

import ray.train.torch

UNUSED_CALLBACKS = {
    "DatasetsCallback",  # a process that splits Ray Datasets; our fits read the stage store
    "PlacementGroupCleanerCallback",  # a process that waits for the controller alone to die; the job's end frees its groups too
}
AUTOSCALING_REQUESTS = ("_send_resource_request", "_maybe_send_resource_request", "_cancel_resource_request")
"""A process that coordinates Ray Data with Ray Train; an autoscaler sees the pending placement group without it."""


def _do_nothing() -> None:
    """Takes the place of an autoscaling request."""


_TorchTrainer: Any = ray.train.torch.TorchTrainer  # its static type is that of version 1


class LeanTorchTrainer(_TorchTrainer):
    """A TorchTrainer whose run consists of the controller, one synchronisation actor and the workers."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in UNUSED_CALLBACKS]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = arguments.get("scaling_policy")
        for name in AUTOSCALING_REQUESTS:
            if hasattr(policy, name):
                setattr(policy, name, _do_nothing)
        return super()._initialize_and_run_controller(**arguments)
