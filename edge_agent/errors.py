"""Errors, sorted by whose fault they are.

`LocalError` means this machine, its files or its configuration need attention.
`RemoteError` means bytes that came from elsewhere are wrong; they are counted by
`reason` and never bring the receiver down.

Every message says what happened, where, and what to do about it.
"""


class EdgeError(Exception):
    """Base of every error this package raises on purpose.

    what: what happened.  where: file, field, topic or address it happened at.
    fix: what the reader can do.
    """

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        text = what
        if where:
            text = where + ": " + text
        if fix:
            text = text + ". " + fix
        super().__init__(text)
        self.what = what
        self.where = where
        self.fix = fix


class LocalError(EdgeError):
    """This machine needs attention."""


class ConfigError(LocalError):
    """A configuration value is missing or out of range; `where` names the field."""


class StoreError(LocalError):
    """The file system or flash refused. `code` is the errno, 0 when unknown."""

    def __init__(self, what: str, where: str = "", fix: str = "", code: int = 0) -> None:
        super().__init__(what, where, fix)
        self.code = code


class JournalError(LocalError):
    """The journal cannot take or give a record."""


class JournalFull(JournalError):
    """The quota is used up and the policy is to drop what is new, or the store is full."""


class ModelError(LocalError):
    """The model cannot be loaded or run; the message names tensor or operator."""


class SensorError(LocalError):
    """The sensor cannot be opened or has stopped delivering."""


class RemoteError(EdgeError):
    """Bytes from elsewhere are wrong. `reason` is a short token for counters."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason + (" (" + detail + ")" if detail else ""))
        self.reason = reason
        self.detail = detail


class CborError(RemoteError):
    """Not the deterministic CBOR subset of SPEC.md."""


class CoseError(RemoteError):
    """Not a COSE structure of SPEC.md, or its tag or signature is wrong."""


class FrameError(RemoteError):
    """A frame that SPEC.md does not allow."""


class DomainError(RemoteError):
    """A domain file that is damaged, badly signed, or not the one asked for."""


class LinkError(RemoteError):
    """The link failed. `reason`: "radio", "network", "broker", "refused" or "timeout"."""
