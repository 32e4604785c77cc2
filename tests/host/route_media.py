"""The media of this repository's own routes, for the conformance suite."""

import os
import shutil

from route_kit import Medium

from gateway.routes.folder import FolderRoute, encode


class Folder(Medium):
    """One directory, seen by each member through a link of its own that can be cut."""

    query_max = 24 * (2 + 3) + 24

    async def begin(self):
        self.share = self.folder / "share"
        self.share.mkdir()

    def _link(self, member):
        return member.folder / "share"

    def make(self, member):
        link = self._link(member)
        if not link.is_symlink():
            link.symlink_to(self.share)
        return FolderRoute(member.owner, link)

    async def part(self, members):
        for member in members:
            self._link(member).unlink()

    async def heal(self):
        for member in self.members:
            if not self._link(member).is_symlink():
                self._link(member).symlink_to(self.share)

    async def junk(self, key, values):
        owner = b"\xee" * 8
        home = self.share / owner.hex() / key.hex()
        home.mkdir(parents=True, exist_ok=True)
        for value in values:
            (home / os.urandom(16).hex()).write_bytes(value)
            (home / os.urandom(16).hex()).write_bytes(encode(value, 0xFFFFFFFF & (2**32 - 1)))
        (home / os.urandom(16).hex()).mkdir()
        os.mkfifo(home / os.urandom(16).hex())
        (home / os.urandom(16).hex()).symlink_to("/dev/zero")
        (home / "notes.txt").write_text("something else")

    async def down(self):
        self.share.rename(self.folder / "unmounted")

    async def up(self):
        (self.folder / "unmounted").rename(self.share)

    async def lose(self):
        for path in self.share.iterdir():
            shutil.rmtree(path)
