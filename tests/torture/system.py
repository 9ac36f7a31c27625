"""What the kernel can do to a process: namespaces, small disks, read-only mounts, missing privileges.

Everything here changes the calling process and its children only, and ends with them.
"""

import ctypes
import os
import resource
import signal
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_NAMESPACES = 0x00020000 | 0x10000000  # CLONE_NEWNS | CLONE_NEWUSER
_PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE
_BIND, _REMOUNT, _READ_ONLY = 0x1000, 0x20, 0x1
_CAPABILITIES_VERSION = 0x20080522
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS


def can_mount(folder: Path) -> bool:
    """Whether this process may mount file systems on a folder, in a namespace of its own."""
    child = os.fork()
    if child == 0:
        try:
            enter_namespace()
            mount_small_disk(folder, 1 << 20)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def enter_namespace() -> None:
    """Give this process its own view of the mounted file systems, and the right to change it."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _NEW_NAMESPACES)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_PRIVATE), None)


def mount_small_disk(path: Path, size: int) -> None:
    """Mount an empty file system with this many bytes."""
    _call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", ctypes.c_ulong(0), f"size={size}".encode())


def mount_read_only(path: Path) -> None:
    """Make a folder read-only, as on a read-only disk."""
    _call("mount", os.fsencode(path), os.fsencode(path), None, ctypes.c_ulong(_BIND), None)
    flags = ctypes.c_ulong(_BIND | _REMOUNT | _READ_ONLY)
    _call("mount", b"none", os.fsencode(path), None, flags, None)


def drop_privileges() -> None:
    """Let permissions count for root too, in this process and in all programs that it starts."""
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    _call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def limit_file_size(size: int) -> None:
    """Let writes beyond this size of a file fail with an error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def limit_memory(additional: int) -> None:
    """Let this process allocate this many bytes in addition to those that it has."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + additional, held + additional))


def _call(name: str, *arguments: object) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
