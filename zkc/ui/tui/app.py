"""The terminal's face: lists above, a reading pane below, a key for each thing that can be done.

The face holds no state of the home: a list is read anew when the daemon says that something of it has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static, TabbedContent, TabPane

from zkc.client.call import Call
from zkc.client.events import Delivery, Event
from zkc.client.happenings import Begun, Ended, Progress
from zkc.errors import PeerViolation, ZkcError
from zkc.rules.names import escape
from zkc.ui.tui.desk import Desk
from zkc.ui.tui.dialogs import Compose, Draft, Letter, Line, Pane, Reading, Sure
from zkc.ui.tui.flows import Flows, Transfer
from zkc.ui.tui.rows import INBOX, PEERS, PENDING, QUEUE, SENT, TRANSFERS, Row, cut, pane

T = TypeVar("T")
_FAILS: Final = (ZkcError, PeerViolation, OSError)
"""What is told to the person, and ends nothing: a harmed file of this home is one thing that cannot be shown."""

_AGES_SECONDS: Final = 20.0
"""How old things are is shown anew that often,"""
_AGES_ROWS: Final = 1_000
"""of a list that is not longer than this."""

_HELP: Final = """\
1 to 6        the list: inbox, pending, sent, queue, peers, transfers
up, down      another line (also j, k; g, G: the first, the last);
              what is known of it stands below
Enter         read it on the whole screen
tab           to the reading pane and back, to scroll in it
/             the next line that has a word; n: and the next

c             write, or send files: F2 sends, Esc does not
              (and c brings back what was not sent)
r             reply to who sent this
f             forward this to somebody else
s             save this to a file or folder (it stays in the inbox)
d             remove this: an item, a job of the queue, a transfer

a             accept what waits (with a PIN, where it is asked for)
x             refuse what waits, with a reason if you like

t             try a job of the queue now
p             the receipt of what was sent, whole
v             the safety number of a peer, to compare with it
F5            read everything anew
q             quit

✓ stands by a peer whose safety number was compared, · by one that is
known and was not compared, "! key" by one whose key has changed;
● by what nobody has looked at yet."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something of the home is not what it was: which lists are to be read anew, and what flows."""

    lists: frozenset[str] = frozenset()
    flow: Begun | Progress | Ended | None = None
    gone: bool = False
    """The daemon: what it was at, nobody tells any more."""


class Lines(DataTable[Text]):
    """A list, with the keys of a pager too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", show=False), Binding("k", "cursor_up", show=False),
        Binding("g", "scroll_top", show=False), Binding("G", "scroll_bottom", show=False),
    ]


class Face(App[None]):
    """``zkc ui``."""

    TITLE = "zkc"
    ENABLE_COMMAND_PALETTE = False
    CSS_PATH = "face.tcss"
    VERTICAL_BREAKPOINTS = [(0, "-low"), (10, "-high")]  # noqa: RUF012 - as in `App`
    """On few lines the list has them all; Enter reads."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        *(
            Binding(str(number), f"list('{name}')", name.title(), show=False)
            for number, name in enumerate(("inbox", "pending", "sent", "queue", "peers", "transfers"), 1)
        ),
        Binding("c", "write", "Write"),
        Binding("r", "reply", "Reply"),
        Binding("f", "forward", "Forward"),
        Binding("s", "save", "Save"),
        Binding("d", "remove", "Remove"),
        Binding("a", "accept", "Accept"),
        Binding("x", "refuse", "Refuse"),
        Binding("t", "retry", "Try now"),
        Binding("p", "receipt", "Receipt"),
        Binding("v", "verify", "Verify"),
        Binding("slash", "find", "Find", key_display="/"),
        Binding("n", "find_next", "Next", show=False),
        Binding("f5", "refresh", "Refresh", show=False),
    ]
    _WHERE: Final[dict[str, frozenset[str]]] = {
        "reply": frozenset({"inbox", "pending", "peers"}), "forward": frozenset({"inbox"}),
        "save": frozenset({"inbox"}), "remove": frozenset({"inbox", "queue", "transfers"}),
        "accept": frozenset({"pending"}), "refuse": frozenset({"pending"}), "retry": frozenset({"queue"}),
        "receipt": frozenset({"sent"}), "verify": frozenset({"peers"}),
    }
    """On which lists an action means something."""

    def __init__(self, desk: Desk, events: Callable[[], Iterable[Change]], clock: Callable[[], float]) -> None:
        """``events`` blocks and says what has changed, until the desk hangs up; ``clock``: monotonic seconds."""
        super().__init__(ansi_color=True)
        self._desk = desk
        self._events = events
        self._clock = clock
        self._rows: dict[str, dict[str, Row]] = {name: {} for name in LISTS}
        self._flows = Flows()
        self._draft = Draft()
        self._sought = ""
        self._below: tuple[str, str] = "", ""
        """What is read below: list and line."""

    # --- what is seen -----------------------------------------------------------------------------------------------

    @property
    def defect(self) -> Exception | None:
        """What ended it before its person did."""
        return self._exception

    def _fatal_error(self) -> None:
        """Textual would print the local variables too, and a PIN may be among them: `defect` is told by the caller."""
        self._close_messages_no_wait()

    def compose(self) -> ComposeResult:
        yield Static("", id="where", markup=False)
        with TabbedContent(initial="inbox"):
            for name, (columns, _) in LISTS.items():
                with TabPane(name.title(), id=name):
                    table = Lines(cursor_type="row", id=f"{name}-table", zebra_stripes=False)
                    table.add_columns(*(Text(column) for column in columns))
                    yield table
        with Pane(id="pane"):
            yield Static("", id="reading", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.theme = "ansi-dark"
        self._table().focus()
        self.action_refresh()
        self.run_worker(self._follow, thread=True, exit_on_error=False)
        self.set_interval(_AGES_SECONDS, self._grow_older)

    def _grow_older(self) -> None:
        if self._is_over:
            return
        name = self._active()
        if name == "transfers":
            self._show_transfers()
        elif len(self._rows[name]) <= _AGES_ROWS:
            self._show(name, self._desk.older(self._rows[name].values()), reads=name != "inbox")

    def _follow(self) -> None:
        for change in self._events():
            if self._desk.closed:
                break
            self.call_from_thread(self._changed, change)

    def _changed(self, change: Change) -> None:
        self._look(change.lists)
        if change.flow is not None:
            self._flows.hear(change.flow, self._clock())
        if change.gone:
            self._flows.nobody_tells()
        if change.gone or change.flow is not None:
            self._show_transfers()

    def on_unmount(self) -> None:
        self._desk.hang_up()

    def action_refresh(self) -> None:
        self._look(LISTS.keys() | {"status"})

    def _look(self, changed: Collection[str]) -> None:
        """Read the lists ``changed`` anew, each once however often it has changed meanwhile."""
        if self._is_over:
            return
        for name in (LISTS.keys() - {"transfers"}).intersection(changed):
            self._spawn(partial(self._load, name), group=f"load-{name}", exclusive=True)
        if "transfers" in changed:
            self._show_transfers()
        if "status" in changed:
            self._spawn(self._say_where, group="where", exclusive=True)

    async def _load(self, name: str) -> None:
        rows = await self._try(LISTS[name][1], self._desk)
        if rows is not None:
            self._show(name, rows)

    def _show(self, name: str, rows: list[Row], *, reads: bool = True) -> None:
        """The lines of a list; the one under the cursor stays there, wherever it has moved to. ``reads``: the pane
        below, too."""
        if self._is_over:
            return
        table = self._table(name)
        here, at = self._key(name), table.cursor_row
        self._rows[name] = {row.key: row for row in rows}
        table.clear()
        for row in rows:
            table.add_row(*_cells(row), key=row.key)
        keys = [row.key for row in rows]
        if rows:
            table.move_cursor(row=keys.index(here) if here in keys else min(at, len(rows) - 1))
        self._count(name)
        if reads and self._active() == name:
            self._read()

    def _count(self, name: str) -> None:
        """Say on a list's tab how much is in it, and how much of that is new."""
        rows = self._rows[name].values()
        new = sum(row.is_new for row in rows)
        told = f" ({len(rows)}, {new} new)" if new else f" ({len(rows)})" if rows else ""
        label = f"{name.title()}{told if name in {'inbox', 'pending', 'queue'} else ''}"
        self._base.query_one(TabbedContent).get_tab(name).label = label

    async def _say_where(self) -> None:
        status = await self._try(self._desk.status)
        if self._is_over:
            return
        if status is None:
            told = f"{self._desk.name}: no daemon runs here (zkc daemon); what arrives waits at its sender"
        elif not status.linked:
            told = f"{status.client}: not linked to {status.coordinator}: {escape(status.problem)}"
        else:
            told = f"{status.client} at {status.coordinator}, {status.presence}"
        self._base.query_one("#where", Static).update(told)

    def _read(self) -> None:
        """Say below what is known of the line under the cursor."""
        if self._is_over:
            return
        row, name = self._row(), self._base.query_one(TabbedContent).active
        if row is None:
            self._say_below((name, ""), "" if self._rows[name] else _EMPTY[name])
        elif name == "inbox":
            self._spawn(partial(self._read_item, row.key), group="read", exclusive=True)
        else:
            self._say_below((name, row.key), pane(row.detail))

    async def _read_item(self, id: str) -> None:
        try:
            text = await asyncio.to_thread(self._desk.read, id)
        except _FAILS as error:
            text = str(error)  # in its place: what stood there is of another item
        self._say_below(("inbox", id), text)
        if self._base.query_one("#pane").display:
            await self._see(id)

    async def _see(self, id: str) -> None:
        """A person has it before his eyes: it is new no more."""
        known = self._rows["inbox"].get(id)
        row = await self._try(self._desk.see, id) if known is not None and known.is_new else None
        table = self._table("inbox")
        if row is None or self._is_over or id not in self._rows["inbox"]:
            return
        self._rows["inbox"][id] = row
        for at, cell in enumerate(_cells(row)):
            table.update_cell_at(Coordinate(table.get_row_index(id), at), cell)
        self._count("inbox")

    def _say_below(self, what: tuple[str, str], text: str) -> None:
        """``what`` is read below; if it was before, on from where it was scrolled to."""
        if self._is_over:
            return
        self._base.query_one("#reading", Static).update(text)
        if what != self._below:
            self._base.query_one("#pane").scroll_home(animate=False)
        self._below = what

    def on_data_table_row_highlighted(self, _moved: DataTable.RowHighlighted) -> None:
        self._read()

    def on_data_table_row_selected(self, _chosen: DataTable.RowSelected) -> None:
        row = self._row()
        if row is None:
            return
        title = f"{self._active().title()}: {cut(row.peer)}"
        if self._active() == "inbox":
            self._spawn(partial(self._show_item, title, row.key))
        else:
            self.push_screen(Reading(title, pane(row.detail)))

    def on_tabbed_content_tab_activated(self, _to: TabbedContent.TabActivated) -> None:
        if self._is_over:
            return
        self._table().focus()
        self.refresh_bindings()
        self._read()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what means something on this list stands in the footer, and is done."""
        where = self._WHERE.get(action)
        return where is None or (not self._is_over and self._active() in where)

    # --- what is done -----------------------------------------------------------------------------------------------

    def action_list(self, name: str) -> None:
        self._base.query_one(TabbedContent).active = name

    def action_help(self) -> None:
        self.push_screen(Reading("Keys", _HELP))

    def action_find(self) -> None:
        def chosen(word: str | None) -> None:
            if word:
                self._sought = word
                self.action_find_next()

        self.push_screen(Line("Find", "A word of a line.", value=self._sought), chosen)

    def action_find_next(self) -> None:
        """The next line of this list that has what is sought, below the cursor or again from the top."""
        rows, table, word = list(self._rows[self._active()].values()), self._table(), self._sought.casefold()
        if not word:
            self.action_find()
            return
        at = table.cursor_row + 1
        for number in (*range(at, len(rows)), *range(min(at, len(rows)))):
            if rows[number].has(word):
                table.move_cursor(row=number)
                return
        self.notify(f"No line has {self._sought}.", markup=False)

    async def action_quit(self) -> None:
        """At once, where nothing is lost by it."""
        flowing = sum(not each.over for each in self._flows.own())
        lost = [
            *([f"{flowing} transfer{'s' if flowing > 1 else ''} under way would end."] if flowing else []),
            *([] if self._draft.is_empty else ["What you wrote was not sent."]),
        ]
        if not lost:
            self.exit()
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.exit()

        self.push_screen(Sure(f"{' '.join(lost)} Quit all the same?", "Quit"), answered)

    def action_write(self) -> None:
        self._compose(self._draft)

    def action_reply(self) -> None:
        row = self._row()
        if row is not None:
            self._compose(Draft(row.peer))

    def _compose(self, draft: Draft) -> None:
        """What is not sent in the end, `action_write` brings back."""

        def written(letter: Letter | None) -> None:
            if letter is None:
                self._keep(draft)
                return
            if draft is self._draft:
                self._draft = Draft()
            payload = letter.text or list(letter.paths)
            name = "message" if letter.text else ", ".join(path.name for path in letter.paths)
            self._begin(letter.recipient, name, partial(
                self._desk.send, recipient=letter.recipient, payload=payload, note=letter.note
            ), draft)

        self.push_screen(Compose(self._desk.names(), draft), written)

    def _keep(self, draft: Draft) -> None:
        if not draft.is_empty:
            self._draft = draft

    def action_forward(self) -> None:
        row = self._row()
        if row is None:
            return
        key, name = row.key, row.cells[2]

        def chosen(to: str | None) -> None:
            if to:
                self._begin(to, name, partial(self._desk.forward, id=key, recipient=to))

        self.push_screen(Line(f"Forward {name} to", "A peer's name.", known=self._desk.names()), chosen)

    def action_save(self) -> None:
        row = self._row()
        if row is None:
            return
        key = row.key

        def chosen(path: str | None) -> None:
            if path:
                self._do(self._desk.save, key, path, told="saved: {}")

        self.push_screen(Line(f"Save {row.cells[2]} to", "A folder, or a file.", value="./"), chosen)

    def action_remove(self) -> None:
        row, name = self._row(), self._active()
        if row is None:
            return
        if name == "transfers":
            self._end(row.key)
            return
        key, what = row.key, row.cells[2] if name == "inbox" else row.cells[1]
        doing, told = (self._desk.remove, "removed") if name == "inbox" else (self._desk.cancel, "forgotten")

        def answered(yes: bool | None) -> None:
            if yes:
                self._do(doing, key, told=told, then={name})

        self.push_screen(Sure(f"Remove {what}? It cannot be brought back.", "Remove"), answered)

    def action_accept(self) -> None:
        row = self._row()
        if row is not None:
            self._spawn(partial(self._accept, row))

    async def _accept(self, row: Row) -> None:
        pin = ""
        if await self._try(self._desk.require_of, row.key) == "authorised":
            given = await self.push_screen_wait(
                Line(f"{row.cells[0]} asks that you prove yourself", "Your PIN or one-time code.", secret=True)
            )
            if not given:
                return
            pin = given
        self._do(self._desk.accept, row.key, pin, told="accepted", then={"pending"})

    def action_refuse(self) -> None:
        row = self._row()
        if row is None:
            return
        key = row.key

        def answered(reason: str | None) -> None:
            if reason is not None:
                self._do(self._desk.refuse, key, reason, told="refused", then={"pending"})

        self.push_screen(Line(f"Refuse {row.cells[2]} from {row.cells[0]}", "Why? May be empty."), answered)

    def action_retry(self) -> None:
        row = self._row()
        if row is not None:
            self._do(self._desk.retry, row.key, told="it is tried now", then={"queue"})

    def action_receipt(self) -> None:
        row = self._row()
        if row is not None:
            self._spawn(partial(self._show_text, "Receipt", self._desk.receipt, row.key))

    def action_verify(self) -> None:
        row = self._row()
        if row is not None:
            self._spawn(partial(self._verify, row.key))

    async def _verify(self, name: str) -> None:
        safety = await self._try(self._desk.safety, name)
        if safety is None:
            return
        number, fingerprint = safety
        question = f"{number}\n\nCompare this with {name}, over another channel. Does {name} read out the same?"
        if await self.push_screen_wait(Sure(question, "The same")):
            self._do(self._desk.confirm, name, fingerprint, told=f"{name} is verified", then={"peers", "inbox"})

    async def _show_item(self, title: str, id: str) -> None:
        await self._show_text(title, self._desk.read, id)
        await self._see(id)

    async def _show_text(self, title: str, ask: Callable[..., str], key: str) -> None:
        text = await self._try(ask, key)
        if text is not None:
            self.push_screen(Reading(title, text))

    # --- transfers --------------------------------------------------------------------------------------------------

    def _begin(self, recipient: str, name: str, send: Callable[..., Delivery], draft: Draft | None = None) -> None:
        """``draft``: what it was written as, kept should nothing come of it."""
        call = Call()
        transfer = self._flows.begin(recipient, name, call)
        self._spawn(partial(self._run, transfer, call, send, draft or Draft()), group="send")
        self._show_transfers()
        self._table("transfers").move_cursor(row=0)

    async def _run(self, transfer: Transfer, call: Call, send: Callable[..., Delivery], draft: Draft) -> None:
        def heard(event: Any) -> None:
            self.call_from_thread(self._heard, transfer, event)

        try:
            done = await asyncio.to_thread(send, call=call, on_event=heard)
        except ZkcError as error:
            transfer.end(error.message)
            self._keep(draft)
            self._tell(error, "" if draft.is_empty else "c brings back what you wrote")
        else:
            transfer.end("delivered", done.bytes)
            self.notify(f"{transfer.name} delivered to {transfer.peer}", markup=False)
            self._look({"sent", "peers"})
        self._show_transfers()

    def _heard(self, transfer: Transfer, event: Event) -> None:
        transfer.hear(event, self._clock())
        self._show_transfers()

    def _end(self, key: str) -> None:
        """A transfer that was begun here; what is over goes from the list."""
        transfer = self._flows.all[key]
        if transfer.over:
            self._flows.forget(key)
            self._show_transfers()
        elif transfer.call is None:
            self.notify("Only what was begun here can be ended here.")
        else:
            transfer.call.end()

    def _show_transfers(self) -> None:
        self._show("transfers", self._flows.rows(self._clock()))

    # --- small things -----------------------------------------------------------------------------------------------

    def _do(self, what: Callable[..., object], *words: object, told: str, then: Iterable[str] = ()) -> None:
        """In a thread; then say what came of it."""

        async def run() -> None:
            try:
                done = await asyncio.to_thread(what, *words)
            except _FAILS as error:
                self._tell(error)
            else:
                self.notify(told.format(escape(str(done))), markup=False)
            self._look(set(then))

        self._spawn(run)

    async def _try(self, ask: Callable[..., T], *words: object) -> T | None:
        """What ``ask`` says, in a thread; None, and a line to the person, where it fails."""
        try:
            return await asyncio.to_thread(ask, *words)
        except _FAILS as error:
            self._tell(error)
            return None

    def _tell(self, error: Exception, more: str = "") -> None:
        what = (error.message, error.hint) if isinstance(error, ZkcError) else (escape(str(error)),)
        told = "\n".join(filter(None, (*what, more)))
        self.notify(told, severity="error", timeout=10, markup=False)

    def _spawn(
        self, doing: Callable[[], Coroutine[Any, Any, None]], *, group: str = "do", exclusive: bool = False
    ) -> None:
        """``exclusive``: in place of what still runs in its group."""
        work: Any = doing
        self.run_worker(work, group=group, exclusive=exclusive)

    @property
    def _is_over(self) -> bool:
        """The person has quit, and what still came in from a thread has nowhere to go."""
        return not self.screen_stack or not self.screen_stack[0].query("#reading")

    @property
    def _base(self) -> Screen[None]:
        """The lists, also while a question lies over them."""
        return self.screen_stack[0]

    def _active(self) -> str:
        return self._base.query_one(TabbedContent).active or "inbox"

    def _table(self, name: str = "") -> DataTable[Text]:
        return self._base.query_one(f"#{name or self._active()}-table", DataTable)

    def _key(self, name: str) -> str:
        """Of the line under the cursor; empty: there is none."""
        table = self._table(name)
        if not table.is_valid_row_index(table.cursor_row):
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    def _row(self) -> Row | None:
        name = self._active()
        return self._rows[name].get(self._key(name))


def _cells(row: Row) -> Iterator[Text]:
    return (Text(cell, no_wrap=True, style="bold" if row.is_new else "") for cell in row.cells)


LISTS: Final[dict[str, tuple[tuple[str, ...], Callable[[Desk], list[Row]]]]] = {
    "inbox": (INBOX, lambda desk: desk.inbox()), "pending": (PENDING, lambda desk: desk.pending()),
    "sent": (SENT, lambda desk: desk.sent()), "queue": (QUEUE, lambda desk: desk.queue()),
    "peers": (PEERS, lambda desk: desk.peers()), "transfers": (TRANSFERS, lambda _: []),
}
_EMPTY: Final = {
    "inbox": "Nothing has arrived.", "pending": "Nothing waits for a person.", "sent": "Nothing was sent yet.",
    "queue": "Nothing waits to be sent.", "peers": "Nobody is known here.", "transfers": "Nothing was sent from here.",
}
