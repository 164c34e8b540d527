"""The system units at work: ``units.py ROOT PAGE``. ROOT is a Debian with zkc and its units, PAGE docs/operations.md.

Boots ROOT in namespaces of its own, without a network, and does what PAGE says. Each step is told once it has been
seen; the first that is not ends it. Standard library only, since zkc is in ROOT.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60
"""Seconds for any single step."""
COORDINATOR = "zkc-coordinator"
CLIENTS = ("alice", "bob")
OUTSIDE = ("/etc", "/usr", "/opt", "/var", "/var/lib/zkc", "/var/lib/zkc/alice", "/srv", "/home", "/root")
HOOK = f"""#!/bin/sh
for folder in {" ".join(OUTSIDE)} /srv/archive; do
  touch $folder/touched 2>/dev/null && echo wrote $folder
done
touch /tmp/touched /dev/shm/touched "$ZKC_HOME/touched" || echo cannot write
[ -e /proc/1 ] && echo sees other processes
ls /var/lib/zkc/alice /var/lib/zkc/coordinator 2>/dev/null
grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status
echo that is all
"""
"""What a hook of bob's can do beyond its home, in `FOUND`."""
FOUND = "/var/lib/zkc/bob/found"
HELD = [*(f"Cap{which}:\t{0:016x}" for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")), "NoNewPrivs:\t1", "Seccomp:\t2"]


class Machine:
    """What runs in ROOT, by its first process."""

    def __init__(self, root: Path, init: int) -> None:
        self.root, self._init = root, init

    def run(self, *words: str, stdin: bytes = b"", code: int = 0) -> bytes:
        """What the command says; it ends with ``code``."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), "-a", "env", "-i", f"PATH={path}", "LC_ALL=C.UTF-8", *words],
            input=stdin, capture_output=True, timeout=PATIENCE, check=False,
        )
        if done.returncode != code:
            raise SystemExit(f"{done.returncode} and not {code}: {' '.join(words)}\n{done.stderr.decode()}")
        return done.stdout

    def systemctl(self, *words: str, code: int = 0) -> str:
        return self.run("systemctl", *words, code=code).decode().strip()

    def zkc(self, user: str, *words: str, stdin: bytes = b"", code: int = 0) -> bytes:
        """As the page says: as the user of the unit, with its home."""
        home = "/var/lib/zkc/" + ("coordinator" if user == "zkc" else user)
        return self.run("runuser", "-u", user, "--", "zkc", "--home", home, *words, stdin=stdin, code=code)

    def property(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", "-p", name, unit)

    def is_active(self, unit: str) -> bool:
        return self.property(unit, "ActiveState") == "active"

    def write(self, path: str, text: str) -> None:
        """By root, in a file that others may read."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")

    def drop_in(self, unit: str, name: str, *lines: str) -> None:
        self.write(f"/etc/systemd/system/{unit}.service.d/{name}.conf", "\n".join(["[Service]", *lines, ""]))
        self.systemctl("daemon-reload")
        self.systemctl("restart", unit)

    def linked(self, name: str) -> None:
        self.zkc(name, "status", "--wait", "30s")


@contextmanager
def booted(root: Path) -> Iterator[Machine]:
    """ROOT's own manager, up; it has gone afterwards."""
    words = ["--quiet", "--register=no", "--private-network", "--console=pipe", "-D", str(root), "--boot"]
    if not Path("/run/systemd/system").exists():
        words.insert(0, "--keep-unit")
    with subprocess.Popen(
        ["systemd-nspawn", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    ) as nspawn:
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
        try:
            until(lambda: bool(nspawn.poll() is not None or children.read_text().split()))
            machine = Machine(root, int(children.read_text().split()[0]))
            until(lambda: is_up(machine))
            yield machine
        finally:
            nspawn.terminate()
            try:
                nspawn.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                nspawn.kill()


def is_up(machine: Machine) -> bool:
    try:
        return machine.systemctl("show", "--value", "-p", "SystemState") in {"running", "degraded"}
    except SystemExit:
        return False


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            raise SystemExit("that did not come")
        time.sleep(0.1)


def seen(holds: object, what: str) -> None:
    if not holds:
        raise SystemExit(f"not seen: {what}")
    print(f"ok  {what}", flush=True)


# --- the steps ------------------------------------------------------------------------------------------------------


def start(machine: Machine) -> None:
    for user in ("zkc", *CLIENTS):
        machine.run("useradd", "--system", "--home-dir", "/var/lib/zkc", "--shell", "/usr/sbin/nologin", user)
    machine.systemctl("enable", "--now", COORDINATOR)
    machine.zkc("zkc", "coordinator", "status")
    seen(machine.is_active(COORDINATOR), "a coordinator that was started serves at once")
    for name in CLIENTS:
        invitation = machine.zkc("zkc", "coordinator", "invite", name)
        machine.run("install", "-d", "-o", name, "-g", name, "-m", "700", f"/var/lib/zkc/{name}")
        machine.zkc(name, "join", "--invite-file", "-", "--accept", "all", stdin=invitation)
        machine.systemctl("enable", "--now", f"zkc@{name}")
        machine.linked(name)
    seen(True, "two clients are invited, join, and are linked")


def transfer(machine: Machine, what: str) -> None:
    payload, receipt = os.urandom(1 << 20), "/var/lib/zkc/alice/receipt"
    machine.zkc("alice", "send", "bob", "--name", "report", "--receipt", receipt, "--wait", "30s", stdin=payload)
    said = machine.zkc("bob", "recv", "-o", "-", "--name", "report")
    machine.zkc("alice", "receipt", "verify", receipt)
    machine.run("rm", receipt)
    seen(said == payload, f"{what}: alice sends, bob has it, the receipt is genuine")


def reload(machine: Machine) -> None:
    config = "/var/lib/zkc/coordinator/config.toml"
    machine.write(config, '[transfer]\nciphers = ["chacha20-poly1305"]\n')
    machine.run("chown", "zkc:", config)
    machine.systemctl("reload", COORDINATOR)
    machine.zkc("alice", "send", "bob", "-m", "no", "--cipher", "aes-256-gcm", code=25)
    machine.write(config, "")
    machine.systemctl("reload", COORDINATOR)
    transfer(machine, "a reload has changed the configuration, and again")


def sandbox(machine: Machine) -> None:
    machine.write("/srv/hook", HOOK)
    config = machine.root / "var/lib/zkc/bob/config.toml"
    with config.open("a", encoding="utf-8") as file:
        file.write(f'\n[hooks]\narrived = ["/bin/sh", "-c", "sh /srv/hook > {FOUND}"]\n')
    machine.run("install", "-d", "-o", "bob", "/srv/archive")
    machine.systemctl("reload", "zkc@bob")
    seen(hooked(machine) == HELD, "a hook writes in its home alone, sees no other process, and has no capability")
    machine.run("test", "!", "-e", "/tmp/touched", "-a", "!", "-e", "/dev/shm/touched")
    seen(True, "its /tmp and /dev/shm are its own")
    machine.drop_in("zkc@bob", "archive", "ReadWritePaths=/srv/archive")
    machine.linked("bob")
    seen(hooked(machine) == ["wrote /srv/archive", *HELD], "with ReadWritePaths= it writes there, too")


def hooked(machine: Machine) -> list[str]:
    """What the hook has found, when something arrives."""
    found = machine.root / FOUND.lstrip("/")
    found.unlink(missing_ok=True)
    machine.zkc("alice", "send", "bob", "-m", "hello", "--wait", "30s")
    until(lambda: found.exists() and "that is all" in found.read_text())
    return found.read_text().splitlines()[:-1]


def exposure(machine: Machine, page: Path) -> None:
    for unit, instance in ((COORDINATOR, COORDINATOR), ("zkc@", "zkc@bob")):
        (told,) = re.findall(rf"^\| `{unit}.service` \|.*\| (\d+\.\d) \|$", page.read_text("utf-8"), re.MULTILINE)
        said = machine.run("systemd-analyze", "--no-pager", "security", instance).decode()
        (found,) = re.findall(r"Overall exposure level for \S+: (\d+\.\d)", said)
        seen(abs(float(found) - float(told)) < 0.35, f"exposure of {instance}: {found}, the page says {told}")


def mishaps(machine: Machine) -> None:
    for unit in (COORDINATOR, "zkc@bob"):
        before = machine.property(unit, "MainPID")
        machine.run("sh", "-c", f"kill -KILL {before}")
        again(machine, unit, before)
        seen(True, f"{unit} is killed, and begun anew")
        machine.drop_in(unit, "watchdog", "WatchdogSec=3")
        before = machine.property(unit, "MainPID")
        # Of a coordinator the process that serves, below the supervisor.
        children = machine.run("cat", f"/proc/{before}/task/{before}/children").decode().split()
        hung = children[0] if unit == COORDINATOR else before
        machine.run("sh", "-c", f"kill -STOP {hung}")
        again(machine, unit, before)
        journal = machine.run("journalctl", "--no-pager", "-u", unit).decode()
        seen("Watchdog timeout" in journal, f"{unit} hangs, and is begun anew")
    for name in CLIENTS:
        machine.linked(name)
    transfer(machine, "after all that")


def again(machine: Machine, unit: str, before: str) -> None:
    until(lambda: machine.is_active(unit) and machine.property(unit, "MainPID") != before)


def stop(machine: Machine) -> None:
    for unit in ("zkc@bob", COORDINATOR):
        began = time.monotonic()
        machine.systemctl("stop", unit)
        ended = machine.property(unit, "Result"), machine.property(unit, "ExecMainStatus")
        seen(ended == ("success", "0"), f"{unit} is stopped: 0, after {time.monotonic() - began:.1f} s")
        machine.systemctl("start", unit)


def wrong_configuration(machine: Machine) -> None:
    for unit, home in ((COORDINATOR, "coordinator"), ("zkc@bob", "bob")):
        config = f"/var/lib/zkc/{home}/config.toml"
        right = (machine.root / config.lstrip("/")).read_text(encoding="utf-8")
        machine.write(config, "this is = = no TOML\n")
        machine.systemctl("restart", unit, code=1)
        time.sleep(5)  # longer than RestartSec=: what is not to come cannot be waited for
        ended = tuple(machine.property(unit, name) for name in ("ActiveState", "ExecMainStatus", "NRestarts"))
        seen(ended == ("failed", "2", "0"), f"{unit} with a wrong configuration: 2, and not tried again")
        machine.write(config, right)
        machine.systemctl("start", unit)


def passphrase(machine: Machine) -> None:
    for word in ("/etc/zkc/bob.passphrase", "/var/lib/zkc/bob/word"):
        machine.write(word, "correct horse battery\n")
        machine.run("chmod", "600", word)
    machine.run("chown", "bob:", "/var/lib/zkc/bob/word")
    machine.systemctl("stop", "zkc@bob")
    given = ["runuser", "-u", "bob", "--", "env", "ZKC_PASSPHRASE_FILE=/var/lib/zkc/bob/word"]
    machine.run(*given, "zkc", "--home", "/var/lib/zkc/bob", "rotate", "--passphrase")
    machine.run("rm", "/var/lib/zkc/bob/word")
    machine.systemctl("start", "zkc@bob", code=1)
    seen(machine.property("zkc@bob", "ExecMainStatus") == "33", "locked keys, and no passphrase: 33")
    machine.drop_in("zkc@bob", "passphrase", "LoadCredential=zkc-passphrase:/etc/zkc/%i.passphrase")
    machine.linked("bob")
    transfer(machine, "the passphrase comes as a credential")


def restore(machine: Machine) -> None:
    tar = machine.zkc("zkc", "coordinator", "backup", "-")
    machine.systemctl("stop", COORDINATOR)
    machine.run("mv", "/var/lib/zkc/coordinator", "/var/lib/zkc/coordinator.old")
    machine.run("install", "-d", "-o", "zkc", "-g", "zkc", "-m", "700", "/var/lib/zkc/coordinator")
    machine.zkc("zkc", "coordinator", "restore", "-", stdin=tar)
    machine.systemctl("start", COORDINATOR)
    for name in CLIENTS:
        machine.linked(name)
    transfer(machine, "a coordinator of its backup")


def on_a_server(machine: Machine) -> None:
    """The coordinator moves, as the page says, to Debian's PostgreSQL."""
    machine.systemctl("start", "postgresql")
    as_server = ("runuser", "-u", "postgres", "--")
    machine.run(*as_server, "createuser", "zkc")
    machine.run(*as_server, "createdb", "--owner", "zkc", "--encoding", "UTF8", "--template", "template0", "zkc")
    tar = machine.zkc("zkc", "coordinator", "backup", "-")
    machine.systemctl("stop", COORDINATOR)
    machine.run("mv", "/var/lib/zkc/coordinator", "/var/lib/zkc/coordinator.file")
    machine.run("install", "-d", "-o", "zkc", "-g", "zkc", "-m", "700", "/var/lib/zkc/coordinator")
    config = "/var/lib/zkc/coordinator/config.toml"
    machine.write(config, '[coordinator]\nkeydb = "postgresql:///zkc"\n')
    machine.run("chown", "zkc:", config)
    machine.zkc("zkc", "coordinator", "restore", "-", stdin=tar)
    machine.systemctl("start", COORDINATOR)
    for name in CLIENTS:
        machine.linked(name)
    transfer(machine, "a coordinator whose key database is in PostgreSQL")
    machine.systemctl("restart", "postgresql")
    transfer(machine, "its server was begun anew")
    seen(not (machine.root / "var/lib/zkc/coordinator/keys.db").exists(), "no file has its keys")


def main(root: Path, page: Path) -> None:
    with booted(root) as machine:
        manager = machine.run("systemctl", "--version").decode().splitlines()[0]
        print(manager, flush=True)
        try:
            start(machine)
            transfer(machine, "two services")
            reload(machine)
            if int(manager.split()[1]) >= 253:
                machine.drop_in(COORDINATOR, "reload", "Type=notify-reload", "ExecReload=")
                print("    with Type=notify-reload:", flush=True)
                reload(machine)
            sandbox(machine)
            exposure(machine, page)
            mishaps(machine)
            stop(machine)
            wrong_configuration(machine)
            passphrase(machine)
            restore(machine)
            on_a_server(machine)
        except SystemExit:
            sys.stderr.write(machine.run("journalctl", "--no-pager", "-o", "cat", "-n", "30").decode())
            raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
