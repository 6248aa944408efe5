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
    vmsplice fanotify_init lookup_dcookie modify_ldt

    kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff acct quotactl
    syslog settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname vhangup iopl ioperm
    mlock mlockall mlock2 migrate_pages move_pages mbind set_mempolicy

    memfd_create memfd_secret shmget semget msgget mq_open
    io_setup inotify_init inotify_init1
"""
"""Ways around the view of the file system; other processes; kernel surface with a long record of holes and
of no use here; the machine itself; memory that no limit counts (files without a name and System V objects
are in no process's figures); counters that the whole machine or all of a user's processes share."""
DENIED = tuple(_DENIED.split())
RLIMIT_CORE, F_SETSIG, F_SETLEASE, MAP_HUGETLB, IPPROTO_UDP = 4, 10, 1024, 0x40000, 17

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
    # Those above would load their module into the machine's kernel (SCTP, DCCP, MPTCP, ...).
    deny("socket", errno.EPROTONOSUPPORT, _Compare(2, _GT, IPPROTO_UDP, 0))
    # What can send a SIGCONT to a process that SIGSTOP has ended a call of: a timer (coreutils' timeout does
    # without it when told that there is none), a descriptor. Leases also hold up those who open the file.
    deny("timer_create", errno.ENOSYS)
    for command in (F_SETSIG, F_SETLEASE):
        deny("fcntl", errno.EPERM, _Compare(1, _MASKED_EQ, 0xFFFFFFFF, command))
    deny("mmap", errno.ENOMEM, _Compare(3, _MASKED_EQ, MAP_HUGETLB, MAP_HUGETLB))
    # At 1 there are no core dumps; at 0 one still goes to the machine's handler (see confine_child).
    core = _Compare(1, _MASKED_EQ, 0xFFFFFFFF, RLIMIT_CORE)
    deny("prlimit64", errno.EPERM, core, _Compare(2, _NE, 0, 0))
    deny("setrlimit", errno.EPERM, _Compare(0, _MASKED_EQ, 0xFFFFFFFF, RLIMIT_CORE))
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
eNpt1VlsVFUcx/HvlOl0sUIhXEBSzIRYQCCICAqEwAAC1YKIIKKIWpAdBAEBZVVfeGCJC7LKvrWltFhE9k3ZURZ9UQnBQHgxLL4QNCF4zu/+
S2Ym3Mnkk/O/59w558xvzsSBqHsHMKArHIkTXh0g4ki4+s0H7gr4lSbqd4mEvMiL8gIj5XlGy19YKn9mmTzHCnmWlfIMq+Rp1spTrJcn2ShP
sEkeZ7P8iS3yR7bKY2yTRymVRyiThymXh9guD1IhD1Ap91Ml91Et97qZevfwm5zKFbmba/J7bspd3JLV3JHfcVfu5J6s4l9ZyX9yB/dlhXYw
cLPJl+U0kGU0lKU0k9toKbfSWm7hGbmZtnITz8qNtJcbeF6u5wW5jo5yLZ3kGrrJb0nI1XSXq+gpV9JLrqBULqdMLqNcfsN2uZQK+TU75FdU
yi+pkl+wU/alWi5ht1zMHrmIfXIhh+VAcgj7r5NvUiTfpY3uT6Cj2gtWPx3mcc0PSXkM+Nz8jHryUxrL+TSX82gh5xKOn8Nzcjad5Sy6yE8o
lh+7GXhnUiJnMEZOZ6z8iHGyLeMtH5PlFKbJD10P72S3Yu8ky/EH7hvyTrRcTrBcjndJ8o5zCfSOdUn1jnGJ9o7mdzmKP+RI/pTvc1WO4C85
nOuyhBvyPf62fQzz+o7ldRi35dv8I4cS0z6/RXYk3P8cOYRc+QZ5cjC15evUkYMsvwOpK1+z/A6gkXyVxrI/BfIVy3U/y1dfy1ex5etly9dL
lq8iy1cfy1dvy1cvyxcRn6+YW0MzMl27h+Wsu+UsYTnrZjkj058fPjf13XvQw/y4CVs9X+1O/e3cy7pi9dap/Ytr+rd4WI/6epHXzydP8yH2
hPUrSB3fs2Z8I7Vb6aANaJnIDe8/nhl55LhY6jiiUWs/Fbab1tyPh+04Set17SdT19muwJ5bcPnR+9Imub/V3bkfyLR6PNCvj3haPT+gjkyr
Zwdul7xp9Wig04BoWj0jCJefkVrPcLOpJZPr88P5N/D6UZHw+6h/Imm/CrVa9ctI3rdC6rpXyr5lp+5bnp1Xj+lGQC5ZMkefFbhqpsyy/8+Y
ZljzvEJVUz83X/UIuTZfeDDPW+Ke5B1m+qX9D76Gx5A=
"""

if __name__ == "__main__":
    encoded = base64.b64encode(zlib.compress(compile_program(), 9)).decode()
    print("\n".join(textwrap.wrap(encoded, 108)))
