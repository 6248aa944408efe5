"""The system calls that model code has no business making, as a BPF program made by libseccomp.

Namespaces take away what the code could reach; this takes away kernel surface that namespaces do not cover:
new user namespaces (and with them the mount, network and BPF code open to a namespace's root), sockets of
families other than UNIX and IP (AF_VSOCK reaches the hypervisor through any network namespace), keyrings,
io_uring, tracing. ``PROGRAM`` holds the compiled filter for x86_64 and aarch64, so that nothing has to be
installed to use it; ``python -m rlm_env.repl.seccomp`` prints a new one where libseccomp 2.5 is installed.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import errno
import os
import tempfile
import textwrap
import zlib

ARCHITECTURES = ("x86_64", "aarch64")

_DENIED = """
    unshare setns mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick
    mount_setattr name_to_handle_at open_by_handle_at

    ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp

    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register add_key request_key keyctl
    vmsplice fanotify_init lookup_dcookie

    kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff acct quotactl
    syslog settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname vhangup iopl ioperm
    mlock mlockall mlock2 migrate_pages move_pages mbind set_mempolicy
"""
"""Ways around the view of the file system; other processes; kernel surface with a long record of holes and
of no use here; the machine itself."""
DENIED = tuple(_DENIED.split())

NEW_NAMESPACES = (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000, 0x80)
"""clone() flags: user, mount, pid, net, ipc, uts, cgroup, time."""


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


_NE, _EQ, _GT, _MASKED_EQ = 1, 4, 6, 7
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_ARCH_TOKEN = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def compile_program() -> bytes:
    """Build the filter with libseccomp. Raises OSError without it."""
    library = ctypes.CDLL(ctypes.util.find_library("seccomp") or "libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ALLOW)))
    native = library.seccomp_arch_native() & 0xFFFFFFFF
    for token in _ARCH_TOKEN.values():
        if token != native:
            _check(library.seccomp_arch_add(context, ctypes.c_uint32(token)))
    # Attribute 2: the action for any other architecture, such as 32-bit calls from a 64-bit process.
    _check(library.seccomp_attr_set(context, 2, ctypes.c_uint32(_KILL_PROCESS)))

    def deny(name: str, code: int, *conditions: _Compare) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            raise OSError(errno.ENOSYS, f"this libseccomp does not know {name}")
        array = (_Compare * len(conditions))(*conditions)
        _check(
            library.seccomp_rule_add_array(
                context, ctypes.c_uint32(_ERRNO | code), number, len(conditions), array
            ),
            name,
        )

    for name in DENIED:
        deny(name, errno.EPERM)
    for flag in NEW_NAMESPACES:
        deny("clone", errno.EPERM, _Compare(0, _MASKED_EQ, flag, flag))
    # clone3 hides its flags behind a pointer; told that it does not exist, libc falls back to clone.
    deny("clone3", errno.ENOSYS)
    # All socket families but UNIX (1), INET (2) and INET6 (10).
    deny("socket", errno.EAFNOSUPPORT, _Compare(0, _GT, 10, 0))
    for family in range(3, 10):
        deny("socket", errno.EAFNOSUPPORT, _Compare(0, _EQ, family, 0))
    # The limits of other processes, such as the supervisor's (the same user id may set those of its own).
    deny("prlimit64", errno.EPERM, _Compare(0, _NE, 0, 0))
    with tempfile.TemporaryFile() as file:
        _check(library.seccomp_export_bpf(context, file.fileno()))
        file.seek(0)
        program = file.read()
    library.seccomp_release(context)
    return program


def _check(code: int, what: str = "libseccomp") -> None:
    if code < 0:
        raise OSError(-code, f"{what}: {os.strerror(-code)}")


def program(machine: str) -> bytes | None:
    """The filter for ``machine`` (as ``platform.machine()`` names it), or None where there is none."""
    return zlib.decompress(base64.b64decode(PROGRAM)) if machine in ARCHITECTURES else None


PROGRAM = """
eNpd1MdPVUEYxuEfV7pEwHjUGGJQQ1Np0hERRGzYe9tgwy7YO9h7FxFr7IIgKIkaV678C9xYFhqNG6PGjVE3OOc9I8K9CXlyPubOmfm+NzcW
CDR/DpQUwotYvE8WBBiKTP1xu/k4XGOp1l2lQl6hVl6mTl6iXtabiutFrss6bsgL3JK13JbnuSPPcVee5Z48w315mgZ5ikZ5kgfyBE3yOM3y
GC3yKK3yCG3yMK/kIT7Kg3yVB/gm9/NT7uOX3MtvuYc/skYdcKgmSu6mt9xFH7mTwXIHQ+V2UuU20uRW0uUWMuVmsuUmcuRGcuUG8uR6imQV
xbKSErmOUrmWBrmGRrmaB3IVTXIlzXIFD+VyWmQFrXIZj2QRbXIJT+RinslFPJfFpMhSctWH8sokLx9VTzvlw2EhPeUCEuR8EuU8vPVzyZBz
yJezKZCzKJMzzUrXGZTL6ebErtPMDVynmhu5TjGdcJ1sOuY6yXTQdaJJhGuZzdcEbsrxNi/jbF7G8lqO4Q3evd7K0byXJXyQo/iEd//PeH36
Ikfa3BTa3IzguyzghxxOsPqVT6jMI0zmEi5ziJDZ9JBZRMpMm6sMouUw+sp0+sk0YmQq8TLFzj/Zzn+onf8QO//Bdv5Jdv6Jdv4Jdv7xdv4E
uPMPNmePJ8g8D7I5GGhzMMDmgMAgozvvXt78+7tzd5+j9Jwc4+WAmHf8XzezIx+KQcd6Wze/J470q8c6ShOxfvUoh0jpVw91iJB+9UCHMOlX
9zm6Mb6udZ85TTfZuV7jnT/a1f1WgPpE5Eu69CO0az8i9GaH7vqHQzghMkx7OKYaJEPs722w3vxvvzhVta+v875x5u3h9hzQXu1abnbynqn5
C6+Mj7o=
"""

if __name__ == "__main__":
    encoded = base64.b64encode(zlib.compress(compile_program(), 9)).decode()
    print("\n".join(textwrap.wrap(encoded, 108)))
