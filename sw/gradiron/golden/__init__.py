"""The golden model: what every simulated and real machine must equal, bit for bit.

`Machine` is the state of a machine and the execution of programs in numpy; `GoldenDevice` puts it
behind the `Device` interface.
"""

from gradiron.golden.device import GoldenDevice
from gradiron.golden.machine import CycleModel, Machine

__all__ = ["CycleModel", "GoldenDevice", "Machine"]
