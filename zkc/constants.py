"""Protocol numbers (the specification) and bounds and intervals (tuning), each with unit and reason."""

from __future__ import annotations

from typing import Final

# --- specification: another implementation must use the same --------------------------------------------------------

VERSION: Final = 1
"""Version byte of every frame; ``zkc/1`` in every derivation."""
TERMS_VERSION: Final = 3
"""Version of REQ and RESP, their first field: it rises when one of them gets a field more."""

ID_BYTES: Final = 16
"""Length of uid, xid, tid, invitation and request ids: random, so 2^64 of them before two meet."""
MAC_BYTES: Final = 32
"""Length of a MAC: HMAC-SHA256, not shortened."""
TAG_BYTES: Final = 8
"""Length of a channel's tag in a record header."""
XID_TAG_BYTES: Final = 16
"""Length of a transfer's tag in a data header, derived from its key: 2^64 of them before two meet."""
COMMITMENT_BYTES: Final = 32
"""Length of the commitment to a stream's key: two keys with the same one take 2^128 tries."""
AEAD_TAG_BYTES: Final = 16
"""Length of an AEAD's tag: that of AES-256-GCM and of ChaCha20-Poly1305, not shortened."""

CONTROL_MESSAGE_MAX: Final = 64 * 1024
"""Bytes; no control message is longer, and libzmq drops a peer that sends one (MAXMSGSIZE)."""
CHUNK_MIN: Final = 64 * 1024
"""Bytes of plaintext in one data chunk, at least: small enough that two for each of `TRANSFERS_MAX` transfers fit into
`WINDOW_BUDGET`, large enough that a frame's fixed cost stays small beside its bytes'."""
CHUNK_MAX: Final = 2 * 1024 * 1024
"""The same at most; the recipient chooses between them. Larger ones are no faster, and a frame is held whole."""
MANIFEST_MAX: Final = 60 * 1024
"""Bytes; a manifest is one frame."""
PREVIEW_BYTES: Final = 1024
"""Bytes of a preview before it is sealed, whatever is in it."""
MESSAGE_TEXT_MAX: Final = 64 * 1024
"""Bytes of a message, which a person reads; what is longer is a file or a stream."""
LISTING_HEADER_BYTES: Final = 8
"""u64, the length of the listing that follows: the first bytes of a tree's stream."""
TRAILER_BYTES: Final = 8 + 32 + 32
"""Total bytes u64, BLAKE3 of the stream, digest of the manifest: the end of the last chunk."""
ROLLOVER_BYTES: Final = 64 * 1024**3
"""Bytes under one AEAD key (2^-65 per key by the GCM bound), then the next attempt's keys on the same link."""
ROLLOVER_BYTES_64BIT_BLOCK: Final = 64 * 1024**2
"""The same for the 64-bit block ciphers 3des and idea (birthday bound)."""
CHANNEL_RECORDS_MAX: Final = 1 << 20
"""A channel's keys live for at most this many records, far below what their cipher bears; then a new handshake."""
CHANNEL_SECONDS_MAX: Final = 3600.0
"""The same in seconds: a key that is stolen opens an hour of records."""
CARD_SECONDS: Final = 90 * 86400
"""A permanent client key is valid for 90 days unless it is rotated before."""
CARD_GRACE_SECONDS: Final = 86400
"""The sender, who alone judges a card's end, allows a day for clocks."""
CLOCKS_APART_SECONDS: Final = 300.0
"""Where the dates of a client and its coordinator differ by more, a card that has expired may be the clock's doing."""
SUCCESSIONS_MAX: Final = 16
"""Successions of a name's identity that a peer follows in one go from the one that it has pinned; beyond that a person
has to look."""
FORMER_KEYS_SECONDS: Final = 7 * 86400
"""What a client had before its keys rotated is kept for a ROT2 that was lost, until a channel under the new ones: for
7 days at most, since a thief may have it."""

# --- tuning: each side's own ----------------------------------------------------------------------------------------

HEARTBEAT_SECONDS: Final = 3.0
"""Application heartbeat of a daemon, jittered by a fifth."""
OFFLINE_SECONDS: Final = 9.0
"""Three misses: a killed client is seen offline within 10 s."""
STEP_SECONDS: Final = 60.0
"""A handshake step at the coordinator; then its state is erased and both are told."""
PENDING_POLL_SECONDS: Final = 5.0
"""How often a sender asks again about a transfer that waits for a person: well within a step, at whose end the
coordinator takes a sender for gone."""
REGISTRATION_SECONDS: Final = 60.0
"""From R0 to R6; then every temporary key is erased."""
REQUEST_SECONDS: Final = 10.0
"""A request in the channel that nobody answers is repeated after RETRY_SECONDS until this is over."""
RETRY_SECONDS: Final = 2.0
"""From a request to its repetition: longer than an answer takes on a slow line, and five times in `REQUEST_SECONDS`."""
SESSION_LINGER_SECONDS: Final = 60.0
"""How long a coordinator keeps the channel of a client whose connection broke."""
APPLICATION_INVITE_SECONDS: Final = 600.0
"""How long the invitation that a client gets for its application can be used."""
INVITATIONS_KEPT_SECONDS: Final = 86400.0
"""How long an invitation stays in the coordinator's list after its end, used or not; then it is deleted."""
KEYDB_SECONDS: Final = 2.0
"""How long a coordinator's event loop waits for another process's transaction: shorter than a heartbeat."""
GOODBYE_SECONDS: Final = 1.0
"""How long a program that ends waits for the answer to its goodbye."""
BACKOFF_FIRST: Final = 0.2
"""Seconds between the first two tries to reach the coordinator, doubled each time, jittered to between a half and the
whole."""
BACKOFF_MAX: Final = 10.0
"""The longest of these pauses."""

CHUNK: Final = 512 * 1024
"""Bytes of plaintext in a chunk: 512 KiB to 1 MiB measured best, and it is half the memory."""
WINDOW_BUDGET: Final = 48 * 1024 * 1024
"""Bytes of credit that all transfers of one receiving process share."""
WINDOW_MAX: Final = 16 * 1024 * 1024
"""Bytes of credit for one transfer, however few there are; a sender takes no more from any recipient."""

# --- bounds on what a peer can make grow ----------------------------------------------------------------------------

BAD_FRAMES_MAX: Final = 16
"""Frames of one transfer that do not open; each costs a connection, the last one the transfer."""
CONNECTIONS_PER_PEER_MAX: Final = 128
"""Connections to a coordinator with one CURVE key: twice the processes that a client may have, since a broken one may
be noticed later than its successor."""
SILENT_SECONDS: Final = 10.0
"""How long a connection to a coordinator may say nothing: twice what its CURVE handshake may take."""
SILENT_SECONDS_FULL: Final = 2.0
"""The same once there is no room for another."""
UNCONFIRMED_CHANNELS_MAX: Final = 4
"""C1 not yet confirmed by a record, for each client; the oldest goes."""
CHANNELS_PER_CLIENT_MAX: Final = 64
"""Confirmed channels (one daemon, many commands) for each client; the oldest `once` goes."""
ANSWERS_KEPT_MAX: Final = 256
"""Answers kept for repeated requests, for each channel's owner."""
ANSWERS_KEPT_BYTES_MAX: Final = 128 * 1024
"""The same in bytes: what a client can make the coordinator keep by asking for long lists. A transfer's answers, which
may be more, are given again by its handshake."""
ENDED_BYTES_MAX: Final = 16 << 20
"""Last answers of handshakes that are over, kept for STEP_SECONDS at a coordinator in case they were lost; in bytes."""
ASKED_MAX: Final = 512
"""Requests of one peer that have no answer yet."""
ASKED_NEW_MAX: Final = 256
"""Of those: that begin a transfer, which may wait for another peer or for a port. The rest is for the steps of
transfers under way, which are answered at once: they end, and so free what the others wait for."""
REGISTRATIONS_MAX: Final = 1024
"""Registrations under way at a coordinator; one more ends the oldest of whoever has most."""
REGISTRATIONS_PER_INVITATION_MAX: Final = 64
"""Of those: with one invitation; the oldest goes."""
REGISTRATIONS_PER_INVITATION_PER_SECOND: Final = 1.0
"""R0 with one invitation, once it has begun as many as there may be under way: each may take a pair of keys."""
HELLOS_PER_SECOND_MAX: Final = 100
"""C1 from one client in a second: each costs the coordinator 0.4 ms."""
ASKED_PER_SECOND_MAX: Final = 1000
"""Requests of one kind from one client in a second that read nothing: heartbeats, goodbyes. Those that are a step of a
transfer: `limits.per_second`."""
LOOKUPS_PER_SECOND_MAX: Final = 100
"""Cards that one client asks for in a second; each costs 0.5 ms."""
PAGES_PER_SECOND_MAX: Final = 20
"""Pages of peers that one client asks for in a second, for long; each costs 10 ms."""
PAGES_AT_ONCE_MAX: Final = 200
"""The same at once: 25,600 names."""
APPLICATION_INVITATIONS_PER_SECOND: Final = 0.5
"""Invitations that one client asks for in a second, for long; each is a transaction."""
SUCCESSIONS_KEPT_MAX: Final = 256
"""Identities that one registration may have had: 9 KB each in the key database, for as long as it is kept."""
ROTATIONS_AT_ONCE_MAX: Final = 16
"""New keys that a client may ask for at once; each is an entry of the log, which only grows."""
ROTATIONS_PER_SECOND: Final = 0.1
"""And from then on."""
APPLICATION_INVITATIONS_MAX: Final = 16
"""Open invitations that one client holds for its applications."""
OUTBOX_BYTES_MAX: Final = 1 << 20
"""Bytes that wait at a coordinator for one connection that reads too slowly; what is beyond is asked for again."""
OUTBOXES_BYTES_MAX: Final = 64 << 20
"""The same for all connections together."""
VERIFIED_KEPT_MAX: Final = 256
"""Cards, and certificates, that a process has checked and need not check again, those used last; 15 KB each."""
XIDS_KEPT_MAX: Final = 65_536
"""Transfer ids that a coordinator remembers as used."""
HANDSHAKES_MAX: Final = 10_000
"""Transfer handshakes under way at a coordinator."""
HANDSHAKES_PER_CLIENT_MAX: Final = 256
"""Of those: begun by one client; as many as a recipient receives at once (`TRANSFERS_MAX`)."""
TRANSFERS_PER_SENDER_MAX: Final = 64
"""Transfers at once from one sender, at a recipient."""
PENDING_PER_SENDER_MAX: Final = 16
"""Transfers of one sender that wait for a person."""
PENDING_MAX: Final = 256
"""The same of all senders: more than a person looks through."""
PARTIALS_PER_SENDER_MAX: Final = 64
"""Partial items of one sender that a recipient keeps; the oldest goes."""
TRANSFERS_MAX: Final = 256
"""Transfers at once to one home, each with a thread; one more waits for its turn."""
TRANSFERS_PER_SECOND_MAX: Final = 1000
"""Requests a second from one sender, at a coordinator and at a recipient."""
CONTROL_CONNECTIONS_MAX: Final = 256
"""Connections to the local control socket at once: as many sends may be under way through one daemon, twice over."""
EVENTS_KEPT_MAX: Final = 1024
"""Events that a daemon remembers; each has at most a name, a note and two lines."""
FOLLOWERS_MAX: Final = 32
"""Processes that follow them: each holds a control connection."""
SENDERS_HEARD_MAX: Final = 64
"""Commands of a home that send by themselves and say how far they are, at once: each holds a control connection."""
LIVE_READERS_MAX: Final = 64
"""Processes of one home that wait for a live transfer or take one: each holds a control connection."""
CONTROL_REQUEST_MAX: Final = 256 * 1024
"""Bytes of one request or answer on the local control socket."""
RECIPIENTS_MAX: Final = 64
"""Of one command: each takes two threads, two sockets, and of a pipe what its recipient has not taken."""
SMALL_MAX: Final = 64 * 1024
"""Bytes of a payload that a command hands to the daemon: what a pipe holds, and a quarter of `CONTROL_REQUEST_MAX`."""
HANDED_FILES_MAX: Final = 16
"""Files that a daemon sends for commands at once, each with a window in memory; others are sent by their commands."""
HOLES_MIN: Final = 8 * 1024**3
"""Bytes of holes from which on a file that is sent alone travels as a tree of one, without them."""
RELAY_CONNECTIONS_MAX: Final = 4096
"""Connections to a relay at once; a transfer has four."""
RELAY_CONNECTIONS_PER_ADDRESS_MAX: Final = 1024
"""Of those: from one address, behind which there may be many clients."""
RELAY_MEETINGS_MAX: Final = 4096
"""Meetings that a relay knows of, used or not; a transfer has two."""
RELAY_MEETINGS_PER_CLIENT_MAX: Final = 256
"""Of those: on account of one recipient: twice `TRANSFERS_PER_SENDER_MAX` transfers at once."""
RELAY_UNUSED_SECONDS: Final = 600.0
"""How long a relay knows of a meeting at which nobody is: longer than ends are patient, unless it is said otherwise."""
RELAY_LONE_SECONDS: Final = 10.0
"""How long a relay holds one end alone; it comes again as long as it hopes."""
RELAY_BUFFER_BYTES: Final = 64 * 1024
"""Bytes of one direction in flight at a relay, at most: its source is not read again before they have left."""
RELAY_BUFFER_LEAST: Final = 4 * 1024
"""The same once many are slow: all together hold at most `RELAY_BUFFERS_BYTES`, and this for each connection."""
RELAY_BUFFERS_BYTES: Final = 32 * 1024 * 1024
"""Bytes in flight of all directions together, before each is read in the smallest pieces."""
RELAY_ANNOUNCE_SECONDS: Final = 10.0
"""A relay says so often that it is there: a coordinator that was told to name it need not ask."""
NOTE_MAX: Final = 4096
"""Bytes of a note, UTF-8."""
FILE_NAME_MAX: Final = 255
"""Bytes of a file name, UTF-8: the limit of the file systems in use."""
LISTING_MAX: Final = 32 * 1024 * 1024
"""Bytes of a tree's listing: a sender holds it in memory, a recipient never does."""
TREE_ENTRIES_MAX: Final = 500_000
"""Files, folders and links of one tree; a listing of that many is some 25 MB."""
TREE_TOPS_MAX: Final = 50_000
"""Of those: at the top, side by side; whoever saves them holds their names."""
TREE_DEPTH_MAX: Final = 255
"""Folders in folders: each is an open descriptor while a tree is read or saved."""
TREE_PATH_MAX: Final = 4096
"""Bytes of a path inside a tree, the limit of Linux for one that is given whole."""
LINK_TARGET_MAX: Final = 4095
"""Bytes of a symbolic link's target: the limit of Linux."""
RUNS_MAX: Final = 2048
"""Runs of data of one sparse file; where it has more, the smallest holes are sent as zeros."""

NONCE_SECONDS: Final = 60.0
"""How long a nonce may be signed."""
ASKS_AT_ONCE_MAX: Final = 64
"""Steps of third-party requests that one client may take at once."""
ASKS_PER_SECOND_MAX: Final = 8
"""The same in the long run: an asker asks once a second how far it is, for each delivery."""
ASKED_JOBS_MAX: Final = 8
"""Deliveries on request under way at one client; half as many for one asker, with those that are pending."""
ASKED_PENDING_MAX: Final = 24
"""Deliveries on request that wait for a person besides; of one recipient half of ASKED_JOBS_MAX."""
ASK_WHAT_MAX: Final = 6000
"""Bytes of what is asked for in a third-party request, before they are sealed: the whole fits into one message."""
EXCLUDES_MAX: Final = 32
"""Globs of what stays behind, in one third-party request."""
ASKED_OPEN_MAX: Final = 64
"""Nonces, and states of deliveries, that one client keeps."""
