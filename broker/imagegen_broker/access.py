"""Access control: CURVE keys, with one allow-list for clients and another for workers."""

import logging
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from imagegen_broker.core.events import Role
from imagegen_common.logs import log
from imagegen_protocol.keys import AllowedKeys, KeyFileError, KeyPair, read_allowed_keys
from imagegen_protocol.limits import MAX_PRIORITY

_log = logging.getLogger("imagegen.broker.access")


class AllowList:
    """The allowed keys of one role; checked at each handshake by libzmq, and at each message by the loop."""

    def __init__(self, role: Role, folder: Path) -> None:
        """Read the folder. Raises `KeyFileError` if it can't be read or all of its key files are invalid."""
        self.role = role
        self._folder = folder
        allowed = read_allowed_keys(folder)
        if allowed.problems and not allowed.names:
            raise KeyFileError(f"no key file in {folder} can be used: {'; '.join(allowed.problems)}")
        self._names = allowed.names
        self._max_priorities = allowed.max_priorities
        self._problems = allowed.problems

    def __len__(self) -> int:
        return len(self._names)

    def allows(self, key: bytes) -> bool:
        """Return whether a key (Z85) is on the list."""
        return key in self._names

    def name_of(self, key: bytes) -> str:
        """Return the name of the key file that contains a key (Z85)."""
        return self._names.get(key, "")

    def max_priority_of(self, key: bytes) -> int:
        """Return the maximum priority of the requests of a key (Z85)."""
        return self._max_priorities.get(key, MAX_PRIORITY)

    def reload(self) -> None:
        """Read the folder again. A key whose file was removed or became invalid is revoked."""
        try:
            allowed = read_allowed_keys(self._folder)
        except KeyFileError as error:
            allowed = AllowedKeys({}, [f"{error}; no key is allowed until the folder can be read"])
        gone = sorted(name for key, name in self._names.items() if key not in allowed.names)
        # One assignment: the authenticator's thread sees the old list or the new one.
        self._names = allowed.names
        self._max_priorities = allowed.max_priorities
        self._problems = allowed.problems
        log(
            _log,
            logging.INFO,
            "allow-list reloaded",
            role=self.role,
            keys=len(allowed.names),
            revoked=",".join(gone) or "none",
        )
        self.report()

    def report(self) -> None:
        """Log the key files that could not be used."""
        for problem in self._problems:
            log(_log, logging.ERROR, "key file skipped", role=self.role, error=problem)

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a key is allowed; called by pyzmq's authenticator on its thread."""
        allowed = self.allows(key)
        if not allowed:
            shown = key.decode("ascii", "replace")
            log(_log, logging.WARNING, "key rejected", role=self.role, key=shown)
        return allowed


class Access:
    """The broker's key pair and both allow-lists."""

    def __init__(self, keys: KeyPair, clients: Path, workers: Path, *, bind_names: bool = False) -> None:
        """Read both allow-lists; `bind_names`: see `may_register`. Raises `KeyFileError` as `AllowList` does."""
        self._keys = keys
        self._bind_names = bind_names
        self.lists: dict[Role, AllowList] = {
            "clients": AllowList("clients", clients),
            "workers": AllowList("workers", workers),
        }
        self._authenticator: ThreadAuthenticator | None = None

    def start(self, context: "zmq.Context[Any]") -> None:
        """Start a thread that authenticates the handshakes of this context's sockets."""
        self._authenticator = ThreadAuthenticator(context, log=logging.getLogger("imagegen.broker.zap"))
        self._authenticator.start()
        for role, allowed in self.lists.items():
            self._authenticator.configure_curve_callback(domain=role, credentials_provider=allowed)

    def guard(self, socket: "zmq.Socket[Any]", role: Role) -> None:
        """Enable CURVE on a socket, for the keys in the role's list only. Call it before `bind`."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, role.encode())

    def may_register(self, key: bytes, name: str) -> bool:
        """Return whether a worker with this key (Z85) may register under this name.

        With `bind_names`, the key in `gpu0.key` may only register as `gpu0` or as a name beginning with `gpu0-`.
        """
        bound = self.lists["workers"].name_of(key)
        return not self._bind_names or name == bound or name.startswith(f"{bound}-")

    def reload(self) -> None:
        """Read both lists again."""
        for allowed in self.lists.values():
            allowed.reload()

    def report(self) -> None:
        """Log the key files of both lists that could not be used."""
        for allowed in self.lists.values():
            allowed.report()

    def close(self) -> None:
        """Stop the thread; call it before the context is terminated."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
