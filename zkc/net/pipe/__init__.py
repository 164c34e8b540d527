"""The hot path: bulk bytes from one process to another over PUSH/PULL, outside every event loop.

One pair of sockets and one blocking loop, in a thread of its own, for each transfer: `Incoming.receive` at the
recipient, `Attempts.next` at the sender. Which of the two listens and which one dials is another matter
(`zkc.net.pipe.meeting`). A connection that breaks off is followed by another. What may be said when is decided by the
delivery machines; here are polling, sockets and backpressure. Both ends hold at most the credit window in memory,
whatever the length.
"""
