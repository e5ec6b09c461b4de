"""Devices for cost estimates: figures of their vendors' data sheets. Nothing here imports paddle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.errors import ConfigError
from llmctl.io.written import Measured, read_written

H100 = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
H200 = "https://www.nvidia.com/en-us/data-center/h200/"


@dataclass(frozen=True)
class Link:
    """A connection of a device.

    Attributes:
        bandwidth: Bytes per second in each direction.
        latency: Seconds of a step of a collective.
    """

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Hardware:
    """A kind of device, in machines of ``node`` of them.

    Attributes:
        memory: Bytes of a device.
        half: Operations per second of matrix products in half types, without sparsity.
        single: The same in float32.
        memory_bandwidth: Bytes per second of its memory.
        node: Devices in a machine.
        inside: Connection to the others of the machine.
        between: Connection of a device to other machines.
        host_memory: Bytes of the machine's memory for each device.
        host_link: Bytes per second between a device and the machine's memory.
        host_bandwidth: Bytes per second of the machine's memory for each device.
        source: Data sheet of the device.
    """

    memory: float
    half: float
    single: float
    memory_bandwidth: float
    node: int
    inside: Link
    between: Link
    host_memory: float
    host_link: float
    host_bandwidth: float
    source: str


NEAR, FAR = 5e-6, 1e-5
"""Assumed latencies inside a machine and between machines, in seconds; ``llmctl bench comm`` measures yours."""

DEFAULT = "h100-80"

HARDWARE: Mapping[str, Hardware] = {
    name: Hardware(memory * 1e9, half * 1e12, single * 1e12, memory_bandwidth * 1e9, 8, Link(inside * 1e9, NEAR),
                   Link(between * 1e9, FAR), host * 1e9, link * 1e9, host_bandwidth * 1e9, source)
    for name, memory, half, single, memory_bandwidth, inside, between, host, link, host_bandwidth, source in (
        # GB, TFLOPS, TFLOPS, GB/s, NVLink and network in GB/s each way, then of the machine for each device: GB, GB/s, GB/s
        ("a100-40", 40, 312, 19.5, 1555, 300, 25, 128, 32, 51, A100),
        ("a100-80", 80, 312, 19.5, 2039, 300, 25, 256, 32, 51, A100),
        ("h100-80", 80, 989, 67, 3350, 450, 50, 256, 64, 77, H100),
        ("h200-141", 141, 989, 67, 4800, 450, 50, 256, 64, 77, H200),
    )
}  # fmt: skip
"""Name -> device. Machines are NVIDIA's own (DGX A100: 8 x 200 Gbit/s, DGX H100: 8 x 400 Gbit/s)."""


def find(name: str) -> Hardware:
    """A device by name.

    Raises:
        ConfigError: There is none.
    """
    if name not in HARDWARE:
        raise ConfigError(f"--hardware {name}: known are {', '.join(HARDWARE)}")
    return HARDWARE[name]


def calibrated(hardware: Hardware, measured: Path) -> Hardware:
    """A device with latency and bandwidth as ``llmctl bench comm`` measured them.

    Args:
        hardware: The device.
        measured: The file that it wrote.

    Raises:
        FileError: The file is missing or damaged.
        ConfigError: The file has no measurement.
    """
    content = read_written(measured, Measured, f"write it with llmctl bench comm --output {measured}", required=True)
    links = {
        name: Link(content[name]["bandwidth"], content[name]["latency"])
        for name in ("inside", "between")
        if name in content
    }
    if not links:
        raise ConfigError(f"{measured} has no measurement; write it with llmctl bench comm --output {measured}")
    return dataclasses.replace(hardware, **links)


def fitted(points: Sequence[tuple[float, float, float]]) -> Link:
    """The connection that explains measurements best, each with the same relative weight.

    Args:
        points: (steps of the ring, bytes of a step, seconds).
    """
    # seconds / seconds = steps x latency / seconds + steps x bytes / bandwidth / seconds
    a = [steps / seconds for steps, _, seconds in points]
    b = [steps * size / seconds for steps, size, seconds in points]
    aa, ab, bb = (sum(x * y for x, y in zip(*pair, strict=True)) for pair in ((a, a), (a, b), (b, b)))
    whole = aa * bb - ab * ab
    latency = (sum(a) * bb - sum(b) * ab) / whole if whole else 0.0
    inverse = (sum(b) * aa - sum(a) * ab) / whole if whole else 0.0
    if latency <= 0:
        latency, inverse = 0.0, sum(b) / bb
    if inverse <= 0:
        # All took as long whatever their size: the bandwidth is at least the fastest that was seen.
        return Link(max(steps * size / seconds for steps, size, seconds in points), sum(a) / aa)
    return Link(1 / inverse, latency)
