"""What can go wrong, in one hierarchy.

Every message says the value, the rule and the remedy. Errors are translated only at the edges: the command
line prints one line and exits with the class's ``exit_code``; the server answers in OpenAI's error format.

    CsmError
    ├── ModelError             a model file or checkpoint that cannot be used
    │   ├── ModelNotFound      no such file, directory or hub model
    │   └── ModelInvalid       truncated, hostile, incomplete or misshapen
    ├── InputError             the request: empty text, an unknown setting, a value out of range
    │   └── PromptTooLong      the text and its context do not fit the model's positions
    ├── OutputError            the destination cannot be written
    └── EngineError            the engine failed while it was running
        └── DeviceError        a device or instruction set that is not there
"""

from __future__ import annotations


class CsmError(Exception):
    """Base of all errors that csm_hybrid raises on purpose."""

    exit_code = 1


class ModelError(CsmError):
    """A model file or checkpoint that cannot be used."""

    exit_code = 3


class ModelNotFound(ModelError):
    """No such file, directory or hub model."""


class ModelInvalid(ModelError):
    """A model file that is truncated, hostile, incomplete or misshapen; all problems are listed together."""


class InputError(CsmError):
    """A request with a value that breaks a rule."""

    exit_code = 2


class PromptTooLong(InputError):
    """The text and its context do not fit the model's positions."""


class OutputError(CsmError):
    """The destination cannot be written."""

    exit_code = 4


class EngineError(CsmError):
    """The engine failed while it was running."""

    exit_code = 5


class DeviceError(EngineError):
    """A device or instruction set that this machine does not have."""
