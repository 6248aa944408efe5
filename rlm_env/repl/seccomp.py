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


_EQ, _GT, _MASKED_EQ = 4, 6, 7
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
eNpd1NlvTGEYx/FvR7epRltxECkZS1elre5V1UVttSsiKVFU0dr3tbXvu1riQuy6aaUJ4sqVv8CN5YIQN4K4EdzUe37zYsxJJp+cZ868533e
35PxAaHm40BZMTzz4b9yIMRQYurtPeZyuEKtnrtMnbxEs2w2FdeLXJUXuCbPc12e44Y8yy15htvyNHfkKe7Kk9yTJ7gvj9Mij9Eqj9Imj9Au
D9MhD9EpD9IlD9At9/NC7uO9bOKzbOSL3Mt3uYcfcjc/5S5+yZ06AYcdxMrt9JfbGCC3kiq3kCY3ky43kSE3kik3kC3XkyvXkSfXki/XUCAb
KJH1lMrVlMtVVMiVtMg6WuUK2mQt7XI5HXIZD+RSOmUNXXIJD+V4uuViHslFPJHVPJUl5Kv/6voU/1w0PA6YC4cF9JXzSZLzSJZV+J+fS5ac
Q6GcTZGcRaWcyUI5w+zMdbrpzHWa6dS10nTuOtWcmOsUc7Kuk81Ju04yk+M60c5VBTflBDsn5XZOyngpS3mFv6/X+Pt/K4t5J8fxQRbxUY7l
kyy081Jg5yWfrzKPbzKXcJ1XDpEyG6/MIkqOIVpm0kdmECPT7TyNJk6OYqBMY5AcSbxMJVGm2NyTbe5JNvdEm3uCzX2EzX24zX2YzX2ozZ0Q
N/dws/dEwsz9EJv/YJt/vM2f+DfmGTfvfuZT9Td3xat67L+6+X9wZFDd52hK8AXVYx1iZFA90iFaBtVDHbwyqO5x1Ame/+ses5teMrDe5N9/
nKv7qxD1T8zzgD7NfWRgf+5+vLK3vnCIIkJ6tYZjqmEywv5/huvNf9ZLUFXregLXTTBvj7L7gJ5G1xqzkv+ept9GCIt7
"""

if __name__ == "__main__":
    encoded = base64.b64encode(zlib.compress(compile_program(), 9)).decode()
    print("\n".join(textwrap.wrap(encoded, 108)))
