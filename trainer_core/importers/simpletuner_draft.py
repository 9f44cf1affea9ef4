"""The job as it grows while a SimpleTuner configuration is read, and what was said of each option.

Nothing of a configuration is passed over: each option ends as a note of one of five kinds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import TypeAdapter, ValidationError

from ..job import TrainJob
from ..specs.no_effect import Row as IdleRow
from ..specs.no_effect import idle
from ..specs.spec import Spec
from .simpletuner_files import Options, Place

TAKEN, OTHERWISE, IDLE, REFUSED, UNKNOWN = KINDS = ("taken", "taken otherwise", "no effect", "refused", "unknown")
TITLES = {
    TAKEN: "taken",
    OTHERWISE: "taken with another meaning",
    IDLE: "has no effect here",
    REFUSED: "refused",
    UNKNOWN: "unknown options",
}
EMPTY = (None, "", "none", "null", "None")  # the first two are as good as not given
MOST_SHOWN = 60  # characters of a value in the report


class Unfit(ValueError):
    """A value that its field does not take; the text says why."""


MISFITS = (TypeError, ValueError, OverflowError)  # of what people write where a number, a list or a file is meant


class Note(NamedTuple):
    """What became of an option. `value` is as the file has it; None where the file has none and the original's own is meant."""

    kind: str
    option: str
    value: Any
    text: str


class Fields:
    """One part of the job: its fields, each of its right type."""

    def __init__(self, model: type[Spec]):
        self.model = model
        self.values: dict[str, Any] = {}

    def put(self, name: str, value: Any) -> None:
        """Unfit when the field does not take the value."""
        info = self.model.model_fields[name]
        kind = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        try:
            self.values[name] = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise Unfit(error.errors()[0]["msg"].removeprefix("Value error, ")) from None

    def get(self, name: str) -> Any:
        return self.values.get(name, self.model.model_fields[name].default)

    def drop(self, name: str) -> None:
        self.values.pop(name, None)

    def drop_idle(self, rows: Sequence[IdleRow]) -> list[tuple[str, str]]:
        """Take out what would do nothing beside the others; each with the reason."""
        dropped = idle(self.model.model_construct(**self.values), rows)
        for name, _ in dropped:
            self.drop(name)
        return dropped


@dataclass
class Draft:
    """The parts of the job by their names, the datasets, and the notes."""

    options: Options
    place: Place
    parts: dict[str, Fields] = field(default_factory=dict)
    routes: list[dict[str, Any]] = field(default_factory=list)
    datasets: list[Fields] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def __post_init__(self) -> None:
        models = {name: info.annotation for name, info in TrainJob.model_fields.items()}
        named = ("base", "lora", "optimizer", "flow", "validation", "training", "publishing")
        self.parts = {name: Fields(models[name]) for name in named}

    def put(self, path: str, value: Any) -> None:
        """`path` is part.field; Unfit when it does not take the value."""
        part, _, name = path.partition(".")
        self.parts[part].put(name, value)

    def get(self, path: str) -> Any:
        part, _, name = path.partition(".")
        return self.parts[part].get(name)

    def note(self, kind: str, option: str, text: str) -> None:
        self.notes.append(Note(kind, option, self.options.get(option), text))

    def given(self, option: str) -> bool:
        """Whether the configuration has this option, and not empty."""
        return self.options.get(option) not in EMPTY


Become = Callable[[Any, str, Any], None]  # of a Draft, or of a dataset's


class Target(Protocol):
    """What a table writes to: the Draft, or one dataset."""

    options: Options

    def put(self, path: str, value: Any) -> None: ...

    def note(self, kind: str, option: str, text: str) -> None: ...


class Row(NamedTuple):
    """What becomes of an option: its kind, the field that it goes to if any, and the sentence for the report.

    `convert` changes the value on its way; `become` stands in for all of it where more than one field is concerned.
    """

    kind: str
    path: str = ""
    text: str = ""
    convert: Callable[[Any], Any] | None = None
    become: Become | None = None


def take(path: str, text: str = "", convert: Callable[[Any], Any] | None = None) -> Row:
    return Row(TAKEN, path, text, convert)


def otherwise(path: str, text: str, convert: Callable[[Any], Any] | None = None) -> Row:
    return Row(OTHERWISE, path, text, convert)


def ignore(text: str) -> Row:
    return Row(IDLE, "", text)


def refuse(text: str) -> Row:
    """Refused where it is switched on."""
    return Row(REFUSED, "", text)


def by(become: Become) -> Row:
    return Row(TAKEN, "", "", None, become)


def is_on(value: Any) -> bool:
    """Whether a value, as SimpleTuner's files write them, switches something on."""
    return str(value).strip().lower() not in ("", "none", "null", "false", "no", "off", "0", "0.0", "[]", "{}")


def apply(draft: Target, option: str, value: Any, row: Row) -> None:
    """Let the option become what its row says."""
    try:
        if row.become is not None:
            row.become(draft, option, value)
        elif value in EMPTY:
            draft.note(IDLE, option, "is empty")
        elif row.kind == REFUSED and not is_on(value):
            draft.note(IDLE, option, "is off")
        else:
            if row.path:
                draft.put(row.path, row.convert(value) if row.convert else value)
            draft.note(row.kind, option, _with_path(row.path, row.text))
    except MISFITS as error:
        draft.note(REFUSED, option, f"{error}; correct it in the configuration")


def drop_empty(draft: Target) -> None:
    """Options without a value are as good as not given."""
    for option in [option for option, value in draft.options.items() if value is None or value == ""]:
        del draft.options[option]
        draft.note(IDLE, option, "is empty")


def _with_path(path: str, text: str) -> str:
    return f"{path}: {text}" if path and text else path or text


def describe(notes: Sequence[Note]) -> str:
    """The report in its parts, for people."""
    lines = []
    for kind in KINDS:
        of_kind = [note for note in notes if note.kind == kind]
        if of_kind:
            lines += [f"{TITLES[kind]} ({len(of_kind)})", *(f"  {_shown(note)}" for note in of_kind), ""]
    return "\n".join(lines).rstrip()


def _shown(note: Note) -> str:
    text = str(note.value)
    value = "" if note.value is None else f" = {text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + ' ...'}"
    return f"{note.option}{value}: {note.text}" if note.text else f"{note.option}{value}"


def to_json(notes: Sequence[Note]) -> dict[str, list[dict[str, Any]]]:
    """The same for machines: kind -> notes."""
    return {kind: [note._asdict() for note in notes if note.kind == kind] for kind in KINDS}
