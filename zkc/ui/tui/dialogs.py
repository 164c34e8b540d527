"""The questions that the terminal's face asks over its lists; each ends with an answer, or None: thought better of."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widgets import Button, Input, Label, Static, TextArea

_ESCAPE: Final = Binding("escape", "dismiss(None)", "Back", show=False)


class Pane(VerticalScroll):
    """A text longer than its place, with the keys of a pager too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", show=False), Binding("k", "scroll_up", show=False),
        Binding("g", "scroll_home", show=False), Binding("G", "scroll_end", show=False),
        Binding("space", "page_down", show=False), Binding("b", "page_up", show=False),
    ]


class Reading(ModalScreen[None]):
    """A text to read, and nothing to answer: help, a receipt, an item."""

    BINDINGS: ClassVar[list[BindingType]] = [_ESCAPE, Binding("q,enter,question_mark", "dismiss(None)", show=False)]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Label(self._title, markup=False, classes="title")
            with Pane():
                yield Static(self._text, markup=False)
            yield Label("up, down, Space: further   Esc: back", classes="hint")


class Line(ModalScreen[str | None]):
    """One line of text; a PIN is not shown."""

    BINDINGS: ClassVar[list[BindingType]] = [_ESCAPE]

    def __init__(
        self, title: str, hint: str, *, value: str = "", secret: bool = False, known: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._title = title
        self._hint = hint
        self._value = value
        self._secret = secret
        self._known = known

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label(self._title, markup=False, classes="title")
            yield Input(self._value, password=self._secret, suggester=SuggestFromList(self._known), compact=True)
            yield Label(f"{self._hint}   Enter: go on   Esc: back", markup=False, classes="hint")

    def on_input_submitted(self, submitted: Input.Submitted) -> None:
        self.dismiss(submitted.value)


class Sure(ModalScreen[bool]):
    """A question with yes and no, of which no is first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "dismiss(False)", show=False), Binding("y", "dismiss(True)", show=False),
    ]

    def __init__(self, question: str, yes: str) -> None:
        super().__init__()
        self._question = question
        self._yes = yes

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._question, markup=False)
            with Horizontal(classes="buttons"):
                yield Button("No (n)", id="no", compact=True)
                yield Button(f"{self._yes} (y)", id="yes", compact=True)

    def on_button_pressed(self, pressed: Button.Pressed) -> None:
        self.dismiss(pressed.button.id == "yes")


@dataclass(frozen=True, slots=True)
class Letter:
    """What is to be sent: text, or files and folders."""

    recipient: str
    text: str
    paths: tuple[Path, ...]
    note: str


@dataclass
class Draft:
    """What was written and not sent, as it stands in the fields."""

    to: str = ""
    paths: str = ""
    text: str = ""

    @property
    def is_empty(self) -> bool:
        return not self.paths and not self.text


class Compose(ModalScreen[Letter | None]):
    """Whom, what: a text, or the paths of files and folders with a note. What was written is in ``draft`` afterwards,
    sent or not.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", show=False), Binding("ctrl+s,f2", "send", "Send", show=False, priority=True),
    ]

    def __init__(self, names: Sequence[str], draft: Draft) -> None:
        super().__init__()
        self._names = names
        self._draft = draft

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Label("New message or files", classes="title label")
            yield Label("To", classes="label")
            known = SuggestFromList(self._names)
            yield Input(self._draft.to, placeholder="a peer's name", id="to", suggester=known, compact=True)
            yield Label("Files", classes="label")
            hint = "paths of files, quoted where they have blanks; or a text below"
            yield Input(self._draft.paths, placeholder=hint, id="paths", compact=True)
            yield Label("Text, or a note for the files", classes="label")
            yield TextArea(self._draft.text, id="text", compact=True)
            yield Label("", id="wrong", markup=False)
            yield Label("F2 or Ctrl+S: send   Tab: next field   Esc: back", classes="hint")

    def on_mount(self) -> None:
        text = self.query_one("#text", TextArea)
        text.move_cursor(text.document.end)
        (text if self._draft.to else self.query_one("#to")).focus()

    def on_input_submitted(self, _submitted: Input.Submitted) -> None:
        self.focus_next()

    def _written(self) -> Draft:
        draft = self._draft
        draft.to = self.query_one("#to", Input).value.strip()
        draft.paths = self.query_one("#paths", Input).value
        draft.text = self.query_one("#text", TextArea).text
        return draft

    def action_back(self) -> None:
        self._written()
        self.dismiss(None)

    def action_send(self) -> None:
        draft = self._written()
        paths, wrong = paths_of(draft.paths)
        if not draft.to:
            wrong = "Whom is it for?"
        elif not paths and not draft.text and not wrong:
            wrong = "There is neither a text nor a file."
        if wrong:
            label = self.query_one("#wrong", Label)
            label.update(wrong)
            label.display = True
            return
        self.dismiss(Letter(draft.to, "" if paths else draft.text, paths, draft.text if paths else ""))


def paths_of(given: str) -> tuple[tuple[Path, ...], str]:
    """The paths that a person has typed, as a shell reads them; and what is wrong with them."""
    try:
        paths = tuple(Path(os.path.expanduser(word)) for word in shlex.split(given))
    except ValueError:
        return (), "A quote has no end."
    missing = [path for path in paths if not os.path.lexists(path)]
    return paths, f"There is no {missing[0]}" if missing else ""
