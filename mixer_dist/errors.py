"""Every error a user can meet; `mixer-dist` prints its one line and exits with its `exit_code`.

MixerError                 1  failed while running
├── RefusedError           2  refused before any work: nothing was written
│   ├── ConfigError           a key is missing, misspelt or has a value that cannot work
│   ├── AccessError           storage refuses the credentials
│   └── MissingError          a file, bucket or checkpoint that is not there
├── StorageError              storage failed for longer than its deadline
├── DataError                 a data shard, index or manifest is not what it should be
├── CheckpointError           a checkpoint is damaged or cannot be written
│   └── SupersededError    3  another trainer has taken the run over
├── NumericsError             too many updates were skipped, or replicas differ
├── PreemptedError        75  asked to stop: the same command goes on
└── PeerError                 another rank failed and has said why
"""

import re

_PASSWORD = re.compile(r"(?<=://)[^\s/@:]*:[^\s/]*(?=@)")
_SIGNATURE = re.compile(
    r"(?i)(?<=[?&])(X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId"
    r"|GoogleAccessId|Signature|sig|(?:access_)?token)=[^\s&'\"]+"
)


def redacted(text: str) -> str:
    """The text without what URLs may carry of secrets: user:password@ and signed queries."""
    return _SIGNATURE.sub(r"\1=***", _PASSWORD.sub("***", text))


OUT_OF_MEMORY_ON_CPU = (
    "can't allocate memory", "could not create a primitive", "can't start new thread",
)  # fmt: skip
"""Of PyTorch, of oneDNN that found no memory for a kernel's code, and of Python for a stack."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, of a GPU or a host.

    By name, as torch need not be imported for it; errors on a CPU have no class of their own.
    """
    is_known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_known or any(words in str(error) for words in OUT_OF_MEMORY_ON_CPU)


class MixerError(Exception):
    """Base of all errors whose message is meant for the user: expected, given, what to do."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class RefusedError(MixerError):
    """The command was refused before it did anything."""

    exit_code = 2


class ConfigError(RefusedError):
    """The configuration is wrong; the message holds one line a problem."""


class AccessError(RefusedError):
    """Storage knows the place but not these credentials."""


class MissingError(RefusedError):
    """A file, bucket or checkpoint that the command needs does not exist."""


class StorageError(MixerError):
    """Reading or writing kept failing until its deadline."""


class DataError(MixerError):
    """Data do not match their manifest, or too many samples are damaged."""


class CheckpointError(MixerError):
    """A checkpoint is damaged, incomplete or cannot be written."""


class SupersededError(CheckpointError):
    """A newer attempt goes on with the run: this trainer must stop, and not be started again."""

    exit_code = 3


class NumericsError(MixerError):
    """Too many updates in a row were skipped, or ranks hold other values than their replicas."""


class PreemptedError(MixerError):
    """A signal asked the run to stop; to be started again, as a launcher does by itself."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class PeerError(MixerError):
    """Another rank failed; it has printed the reason, this one ends silently with the same code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
