"""Every error that nanovllm raises on purpose.

Two families, because they end differently. A `UsageError` says that files, settings or the model are unusable; a
command that meets one stops with exit code 2 before any work. A `RequestError` belongs to one request: that request
fails, the others go on. Messages are one sentence that names the place, what was found, what was expected and the cure.
"""


class NanovllmError(Exception):
    """Base of all errors of this package."""


class UsageError(NanovllmError, ValueError):
    """The user's files, settings or model cannot be used; nothing was generated."""


class ConfigError(UsageError):
    """A setting of the engine, a job file or config.json is wrong or unsupported."""


class CheckpointError(UsageError):
    """A weight file is damaged, incomplete, or does not fit its config.json."""


class TokenizerError(UsageError):
    """tokenizer.json, tokenizer_config.json or a chat template cannot be used."""


class MemoryBudgetError(UsageError):
    """The machine does not have the memory that the settings ask for."""


class RequestError(NanovllmError, ValueError):
    """One request cannot be served.

    Attributes:
        code: stable snake_case name for machines, such as `prompt_too_long`.
        message: one sentence for people.
        retryable: whether the same request may succeed later, unchanged.
        param: argument or field that is to blame, where the raiser names one.
    """

    def __init__(self, code: str, message: str, retryable: bool = False, param: str | None = None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.param = param

    def __reduce__(self):
        return type(self), (self.code, self.message, self.retryable, self.param)
