"""What a Ray cluster has, and how many actors of what size use it up."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_serve.errors import SettingsError, quote

__all__ = ["ActorPool", "actor_pool", "assigned", "connect", "machines", "ray_data"]

_SHARED_CPU = 0.5


@dataclass(frozen=True, slots=True)
class ActorPool:
    """Actors of one size.

    Attributes:
        actors: How many.
        cpus: Of each; below 1 on a machine of one CPU, which reads and writes too.
        gpus: Of each.
    """

    actors: int
    cpus: float
    gpus: float

    @property
    def slots(self) -> int:
        """Runs at once in each."""
        return max(int(self.cpus), 1)


def actor_pool(
    resources: Sequence[Mapping[str, float]],
    *,
    actors: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
) -> ActorPool:
    """Actors that use what the machines have: one a GPU where there are GPUs, else one a machine.

    One CPU of each machine is left to Ray Data, whose tasks read and write while the actors run. Machines of
    different sizes get actors of the size that fits the smallest, and the larger ones more of them.

    Args:
        resources: ``CPU`` and ``GPU`` of each machine, as Ray counts them.
        actors: Chosen by the caller; None for as many as fit.
        cpus: Of an actor; None for a share.
        gpus: Of an actor; None for one where any machine has one.

    Raises:
        SettingsError: No machine can hold such an actor.
    """
    if gpus is None:
        gpus = 1.0 if any(machine.get("GPU", 0) >= 1 for machine in resources) else 0.0
    fitting = [
        machine for machine in resources if machine.get("GPU", 0) >= gpus and machine.get("CPU", 0) > 0
    ]
    if cpus is None:
        shares = [_free(machine) / _at_once(machine, gpus) for machine in fitting]
        cpus = max(
            float(math.floor(min(shares, default=1.0))), 1.0 if min(shares, default=1.0) >= 1 else _SHARED_CPU
        )
    if actors is None:
        actors = sum(_fit(machine, cpus, gpus) for machine in fitting)
        if not actors:
            raise SettingsError(
                f"Ray: no machine of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for an actor; "
                f"choose fewer, or --actors"
            )
    return ActorPool(actors, cpus, gpus)


def _free(machine: Mapping[str, float]) -> float:
    """CPUs that actors may take."""
    cpus = machine["CPU"]
    return cpus - 1 if cpus > 1 else cpus * _SHARED_CPU


def _at_once(machine: Mapping[str, float], gpus: float) -> int:
    """Actors of so many GPUs that a machine holds; without GPUs one."""
    return max(int(machine["GPU"] // gpus), 1) if gpus else 1


def _fit(machine: Mapping[str, float], cpus: float, gpus: float) -> int:
    # A choice of all of a machine's CPUs is the caller's to make.
    by_cpus = max(int(_free(machine) // cpus), int(machine["CPU"] >= cpus))
    return min(by_cpus, _at_once(machine, gpus)) if gpus else by_cpus


def connect(address: str | None = None) -> None:
    """Connects to a cluster; without an address to that of ``RAY_ADDRESS``, else starts Ray on this machine.

    Raises:
        SettingsError: Ray is not installed, or there is no cluster.
    """
    ray_data()
    import ray  # noqa: PLC0415  an extra

    try:
        ray.init(address, ignore_reinit_error=True, include_dashboard=None if address else False)
    except (ConnectionError, ValueError, RuntimeError) as ex:
        raise SettingsError(f"Ray: no cluster at {quote(address)}: {quote(ex)}") from ex


def machines() -> list[Mapping[str, float]]:
    """What each machine of the cluster has; one CPU where Ray has not been started."""
    import ray  # noqa: PLC0415  an extra

    if not ray.is_initialized():
        return [{"CPU": 1.0}]
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def assigned() -> tuple[int, float]:
    """CPUs and GPUs that Ray gave to this actor; outside Ray one CPU."""
    try:
        import ray  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        return 1, 0
    if not ray.is_initialized():
        return 1, 0
    try:
        resources = ray.get_runtime_context().get_assigned_resources()
    except AssertionError:
        return 1, 0  # in the driver, which Ray assigns nothing
    return max(int(resources.get("CPU", 1)), 1), float(resources.get("GPU", 0))


def ray_data() -> Any:
    """The module ``ray.data``.

    Raises:
        SettingsError: Ray is not installed.
    """
    try:
        from ray import data  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        raise SettingsError('Ray is not installed: pip install "onnx-serve[ray]"') from None
    return data
