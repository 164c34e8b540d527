"""Decoders that several threads make at once, of classes that no decoder has seen."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.program import PATIENCE

CLASSES = 100
AT_ONCE = f"""
from __future__ import annotations

import sys, threading, types

import msgspec

from zkc import decoders

SOURCE = '''
from __future__ import annotations
import msgspec
from typing import Annotated
class Inner(msgspec.Struct, array_like=True):
    number: Annotated[int, msgspec.Meta(ge=0)]
    text: str = ""
class Outer(msgspec.Struct, array_like=True, tag="outer"):
    one: Inner
    several: list[Inner]
'''

def use(kind, value, reads, begin):
    begin.wait()
    for read in reads:
        assert read(kind, value) == value

READS = [
    lambda kind, value: decoders.msgpack_decoder(kind).decode(msgspec.msgpack.encode(value)),
    lambda kind, value: decoders.json_decoder(kind).decode(msgspec.json.encode(value)),
    lambda kind, value: decoders.convert(msgspec.to_builtins(value), kind),
]
sys.setswitchinterval(1e-6)
for n in range({CLASSES}):
    module = sys.modules[f"fresh{{n}}"] = types.ModuleType(f"fresh{{n}}")
    exec(SOURCE, module.__dict__)
    value = module.Outer(module.Inner(1), [module.Inner(2, "x")])
    begin = threading.Barrier(3)
    reads = READS[n % 3:] + READS[:n % 3]  # each is the first to meet some of the classes
    threads = [threading.Thread(target=use, args=(module.Outer, value, reads, begin)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_that_meet_at_a_class_each_get_its_decoder() -> None:
    """msgspec's own would end the process by SIGSEGV."""
    command = [sys.executable, "-c", AT_ONCE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["json_decoder", "msgpack_decoder"])
def test_a_decoder_is_made_once(name: str) -> None:
    from zkc import decoders

    make = getattr(decoders, name)
    assert make(dict[str, int]) is make(dict[str, int]) is not make(dict[str, str])
