"""The outcome: what a situation looked like, what was concluded, how it turned out.

`distil` makes one from the output of a model, with integer arithmetic only, so that the
same output bytes give the same outcome on every interpreter.
"""

from edge_agent.domain import UNSURE, Domain
from edge_agent.errors import ModelError
from edge_agent.interfaces import ModelOutput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence

TAGS_MAX = 4
PARENTS_MAX = 2


class Outcome:
    """One outcome. Numbers are indexes into the domain's lists unless said otherwise.

    vector: 64 int8 values as bytes; None only in feedback.
    label: what was concluded; in feedback the label that was true.
    confidence: 0..255, 255 is certain; None only in feedback.
    tags: at most 4, ascending.  action, result: None when there is none.
    parents: ids (16 bytes) of at most 2 outcomes this one was synthesised from.
    depth: longest chain of parents, 0 without any.
    head: version of the last layer that decided, None for the model's own.
    about: id of the outcome that this one judges: that makes it feedback.
    model: first 8 bytes of the model file's SHA-256, None when not known.
    alone: (label, confidence) that the device's own model gave, when a head or neighbours
    took part; else None.
    """

    __slots__ = (
        "about",
        "action",
        "alone",
        "confidence",
        "depth",
        "head",
        "label",
        "model",
        "parents",
        "result",
        "tags",
        "vector",
    )

    def __init__(
        self,
        vector: "bytes | None",
        label: int,
        confidence: "int | None",
        tags: "Sequence[int]" = (),
        action: "int | None" = None,
        result: "int | None" = None,
        parents: "Sequence[bytes]" = (),
        depth: int = 0,
        head: "int | None" = None,
        about: "bytes | None" = None,
        model: "bytes | None" = None,
        alone: "tuple[int, int] | None" = None,
    ) -> None:
        self.vector = vector
        self.label = label
        self.confidence = confidence
        self.tags = tuple(tags)
        self.action = action
        self.result = result
        self.parents = tuple(parents)
        self.depth = depth
        self.head = head
        self.about = about
        self.model = model
        self.alone = alone

    def _all(self) -> "tuple[object, ...]":
        return (
            self.vector,
            self.label,
            self.confidence,
            self.tags,
            self.action,
            self.result,
            self.parents,
            self.depth,
            self.head,
            self.about,
            self.model,
            self.alone,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        kind = "feedback" if self.about is not None else "outcome"
        return "<%s label %s confidence %s tags %s>" % (
            kind,
            self.label,
            self.confidence,
            self.tags,
        )


def feedback(about: bytes, label: int, result: int) -> Outcome:
    """The judgement of an earlier outcome: what was true, and confirmed or corrected."""
    return Outcome(None, label, None, result=result, about=about)


def distil(
    output: ModelOutput,
    domain: Domain,
    model_id: "bytes | None",
    tags: "Sequence[int]" = (),
    unsure_below: int = 0,
    advise: "Callable[[bytes, bytes], Any] | None" = None,
) -> Outcome:
    """What a model's output means in a domain.

    The label with the highest score wins, the lowest index when several share it; that
    score is the confidence. Tags are sorted and unique; when the confidence is below
    `unsure_below` and the domain has a tag "unsure", it is added and the highest of
    five tags gives way. ModelError when the output does not belong to the domain.

    advise(scores, vector): what a head and neighbours make of it (mail.Advice), or None. Then
    label and confidence are theirs, and the model's own go into `alone`.
    """
    scores = output.scores
    if not 0 < len(scores) <= len(domain.labels):
        raise ModelError(
            "the model gives %d scores, the domain has %d labels"
            % (len(scores), len(domain.labels)),
            domain.name,
            "use the domain file that belongs to this model",
        )
    if len(output.embedding) != domain.space.dim:
        raise ModelError(
            "the model gives an embedding of %d numbers, the domain wants %d"
            % (len(output.embedding), domain.space.dim),
            domain.name,
            "use the domain file that belongs to this model",
        )
    label = 0
    best = scores[0]
    for i in range(1, len(scores)):
        if scores[i] > best:
            best = scores[i]
            label = i
    vector = domain.vector(output.embedding, output.zero_point)
    advice = None if advise is None else advise(scores, vector)
    alone = None
    parents: Sequence[bytes] = ()
    depth = 0
    head = None
    if advice is not None:
        alone = (label, best)
        label, best, parents, depth, head = advice
    given = sorted(set(tags))
    if given and not 0 <= given[0] <= given[-1] < len(domain.tags):
        raise ModelError("tag %d is not in the domain" % given[-1], domain.name)
    if best < unsure_below and UNSURE in domain.tags:
        unsure = domain.tags.index(UNSURE)
        if unsure not in given:
            given = sorted(given[: TAGS_MAX - 1] + [unsure])
    return Outcome(
        vector,
        label,
        best,
        given[:TAGS_MAX],
        parents=parents,
        depth=depth,
        head=head,
        model=model_id,
        alone=alone,
    )
