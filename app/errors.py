"""The errors the program raises for what comes from outside. Each message is one sentence that says what to do.

    BedsideError
    ├── SettingsError      a setting is unknown or malformed        (names key and value)
    ├── InputError         what a person gave cannot be used        (shell: exit 2)
    └── StorageError       the database or the disk refused a write (shell: exit 1)

The layers below raise their own, which the pages and the shell show in the same way: `contracts.PatientError`,
`contracts.ContextLengthError`, `retrieval.errors.DocumentError`, `model.checkpoint.CheckpointError`,
`safety.rule.RuleError`.
"""


class BedsideError(Exception):
    """Base of all errors raised by app/."""


class SettingsError(BedsideError):
    """A setting is unknown, malformed or points to nothing."""


class InputError(BedsideError):
    """What a person typed or uploaded cannot be used; the message says why and what to do."""


class StorageError(BedsideError):
    """The database or the disk refused a write; nothing was half-written."""
