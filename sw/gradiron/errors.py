"""The errors that a user can meet. Each message has the value, what is allowed, and the remedy."""


class GradironError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(GradironError):
    """A hardware configuration that cannot exist."""


class AssemblyError(GradironError):
    """A program text or an operand that the instruction set does not allow."""


class PlanError(GradironError):
    """A model that does not fit the memory of a configuration."""


class ModelError(GradironError):
    """A layer graph or a model file that cannot be mapped."""


class DataError(GradironError):
    """Input data of the wrong shape, type or range, or a data set that is missing."""


class DeviceError(GradironError):
    """A device that refuses, does not answer or does not match."""


class LinkError(DeviceError):
    """The link to a device is broken, or asked for what it cannot carry."""


class MachineError(DeviceError):
    """The machine stopped in its error state.

    Attributes
    ----------
    cause : str
        Name of the cause, one of `gradiron.arch.isa.ErrorCause`.
    pc : int
        Program counter of the instruction that failed.
    """

    def __init__(self, cause: str, pc: int, detail: str = "") -> None:
        self.cause = cause
        self.pc = pc
        super().__init__(
            f"the machine stopped with {cause!r} at program counter {pc}"
            + (f": {detail}" if detail else "")
            + "; correct the program, then reset the device (Device.reset) to go on"
        )


class MismatchError(GradironError):
    """Two devices that must agree bit for bit do not."""


class ToolError(GradironError):
    """An external tool (compiler, synthesiser) is missing or failed."""


class MissingExtraError(GradironError):
    """An optional dependency is needed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'gradiron[{extra}]'"
        )
