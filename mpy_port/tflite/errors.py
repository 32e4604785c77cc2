"""The one error of this library."""


class ModelError(Exception):
    """The model cannot be loaded or run.

    what: what is wrong.  where: the tensor or operator it was found in, "" for the file.
    fix: what the reader can do, "" when there is nothing to add.
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
