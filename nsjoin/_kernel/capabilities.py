"""Names of capabilities, capabilities(7), and sets of them as the bits that the kernel takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


#: In the order of linux/capability.h, as of Linux 5.9, which added the last one.
# fmt: off
NAMES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)
# fmt: on

_BIT = {name: 1 << number for number, name in enumerate(NAMES)}


def bits(names: Iterable[Any]) -> int:
    """Return ``{"net_admin", "CAP_SYS_PTRACE"}`` as bits. TypeError, or ValueError for an unknown name."""
    if isinstance(names, (str, bytes)):
        raise TypeError(f"capabilities is an iterable of names, such as ({names!r},), not a {type(names).__name__}")
    return sum({_bit(name) for name in names})


def _bit(name: Any) -> int:
    if not isinstance(name, str):
        raise TypeError(f"a capability is named by a str, not {type(name).__name__}")
    plain = name.lower()
    bit = _BIT.get(plain[4:] if plain.startswith("cap_") else plain)
    if bit is None:
        raise ValueError(f"unknown capability {name!r}")
    return bit


def name_of(number: int) -> str:
    """Return the name of the capability of that number."""
    return f"cap_{NAMES[number]}" if number < len(NAMES) else f"capability {number}"
