"""Root working in a service's folder becomes that service's user.

What root makes there would be lost to the service; and root should not follow links that a
service's user may lay.
"""

import contextlib
import os
import pwd
from pathlib import Path


def become_owner(folder: "Path | str") -> None:
    """Be the owner of `folder`, for good, when this is root and the owner is not."""
    if os.geteuid() != 0:
        return
    with contextlib.suppress(FileNotFoundError):
        found = Path(folder).stat()
        if found.st_uid == 0:
            return
        try:
            os.initgroups(pwd.getpwuid(found.st_uid).pw_name, found.st_gid)
        except KeyError:
            os.setgroups([])
        os.setgid(found.st_gid)
        os.setuid(found.st_uid)
