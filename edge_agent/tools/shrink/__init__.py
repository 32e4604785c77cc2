"""A device's modules made smaller, as a whole: what they do stays, what hosts read goes.

Each step takes only what a program can be shown not to need, by its names alone: a name
that is also a text, in a script or on a foreign object is left as it is.

    strip       docstrings, annotations, what only a type checker reads, methods that only
                raise NotImplementedError
    constants   a module's fixed numbers and short texts are written where they are used,
                in other modules, too
    fold        branches that a board never takes, empty base classes, some comprehensions
    shake       definitions that no module and no script names, imports that are not used
    texts       what errors say goes into a file, and is read when an error is made
    merge       what the program imports in any case becomes one module
    rename      private names and names of positional parameters become short

What it is for: on a 32-bit MicroPython, with its files in ROMFS, a name costs 7 bytes of
heap, and 2 more in every module that uses it; a global, an import or a method a slot of 8
bytes in a dictionary, a function 16 besides, however short it is, a text 20, a module 100
and more. With files read into RAM, their letters and their bytecode come on top. Kernels
written for viper keep annotations and parameters: there they mean machine types.
"""

import ast

from edge_agent.tools.shrink.constants import Constants
from edge_agent.tools.shrink.fold import Loops, fold, no_empty_bases
from edge_agent.tools.shrink.merge import merge
from edge_agent.tools.shrink.rename import rename
from edge_agent.tools.shrink.shake import kept_names, shake
from edge_agent.tools.shrink.strip import strip
from edge_agent.tools.shrink.texts import outsource


def shrink(
    sources: "dict[str, str]",
    scripts: "list[str]",
    public: "tuple[str, ...]",
    roots: "list[str]",
    late: "dict[str, list[str]] | None" = None,
) -> "tuple[dict[str, str], dict[str, str], list[str]]":
    """(sources by dotted module name, where names went: "module.name" -> new name, texts).

    scripts: sources of programs that will run with these modules. public: modules whose
    public names others may use yet. roots: modules that every program imports.
    late: modules to be made of what is imported inside functions: name -> its roots.
    ValueError when the modules do something that cannot be followed.
    """
    modules = {name: ast.parse(text) for name, text in sources.items()}
    outside = [ast.parse(text) for text in scripts]
    for tree in modules.values():
        strip(tree)
        fold(tree)
    Constants(modules).write()
    no_empty_bases(modules)
    for tree in modules.values():
        fold(tree)
        Loops().visit(tree)
    texts = outsource(modules)
    kept = kept_names(modules, outside, public)
    shake(modules, kept)
    names = merge(modules, [r for r in roots if r in modules], kept)
    for into, starts in (late or {}).items():
        names |= merge(modules, [r for r in starts if r in modules], kept, into)
    shake(modules, kept)
    rename(modules, outside)
    small = {
        name: ast.unparse(ast.fix_missing_locations(tree))
        for name, tree in modules.items()
        if tree.body or name.endswith(".__init__")
    }
    return small, names, texts
