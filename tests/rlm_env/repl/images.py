"""Container images for tests, made of this machine's own files: no registry, no build, no network.

An image holds a shell, the few programs that verifiers' container runtimes call, and one bare Python (its
standard library only) or none: so what works in it needs nothing else. Only for glibc Linux.
"""

import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("sh", "sleep", "cat", "head", "mkdir", "mv", "cp", "rm", "chown", "env", "setsid", "true")
NOT_NEEDED = shutil.ignore_patterns(
    "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip",
    "lib2to3", "__pycache__", "config-*", "*.a",
)  # fmt: skip
PLACE = "/opt/python/bin"
"""Where the Python lies; ``/usr/bin/python3`` links to it."""
ENGINES = ("docker", "podman", "apptainer")


def make_root(folder: Path, python: str | None) -> Path:
    """The root file system of an image: ``python`` as ``python3``, or no Python when it is None."""
    for name in ("tmp", "etc", "proc", "dev", "sys", "root", "app", "bin", "usr/bin", "var/tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\n")
    # Engines mount these two over, and some want to find a file there.
    (folder / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (folder / "etc/resolv.conf").touch()
    for name in PROGRAMS:
        path = shutil.which(name)
        assert path is not None, f"{name} is not on this machine"
        _copy_program(folder, path, f"bin/{name}")
    if python is not None:
        question = (
            "import json, sys, sysconfig; print(json.dumps([sys.executable, sysconfig.get_path('stdlib')]))"
        )
        said = subprocess.run(
            [python, "-I", "-c", question], capture_output=True, text=True, check=True
        ).stdout
        executable, stdlib = json.loads(said)
        binary = os.path.realpath(executable)
        # Not where it lives here: a Python finds its library beside itself.
        _copy_program(folder, binary, f"{PLACE.lstrip('/')}/{os.path.basename(binary)}")
        shutil.copytree(stdlib, folder / "opt/python/lib" / os.path.basename(stdlib), ignore=NOT_NEEDED)
        for extension in Path(stdlib, "lib-dynload").glob("*.so"):
            _copy_libraries(folder, str(extension))
        (folder / "usr/bin/python3").symlink_to(f"{PLACE}/{os.path.basename(binary)}")
    return folder


def _copy_program(folder: Path, path: str, name: str) -> None:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(os.path.realpath(path), target)
    _copy_libraries(folder, path)


def _copy_libraries(folder: Path, path: str) -> None:
    listed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+)", listed):
        # A home directory, say, may be hidden in the container.
        known = library.startswith(("/lib", "/usr/lib"))
        target = folder / (library.lstrip("/") if known else f"usr/lib/{os.path.basename(library)}")
        if os.path.exists(library) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)


class Engine:
    """A container engine of this machine, called as verifiers calls it: by its command.

    ``folder`` holds root file systems, archives and image files while they are needed.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self._images: dict[str, str] = {}

    def call(self, *arguments: str) -> str:
        """Standard output. Raises RuntimeError with what the engine said when it fails."""
        done = subprocess.run([self.name, *arguments], capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{arguments[0]}: {(done.stderr or done.stdout).strip()[-500:]}")
        return done.stdout

    def image(self, label: str, python: str | None) -> str:
        """An image of ``make_root``, made once; returns what ``runtime.image`` has to be."""
        if label not in self._images:
            name = f"{label}.sif" if self.name == "apptainer" else f"localhost/rlm-repl-test:{label}"
            self._images[label] = self._make(name, python)
        return self._images[label]

    def _make(self, name: str, python: str | None) -> str:
        root = make_root(self.folder / "root", python)
        try:
            if self.name == "apptainer":
                self.call("build", str(self.folder / name), str(root))
                return str(self.folder / name)
            with tarfile.open(self.folder / "root.tar", "w") as tar:
                tar.add(root, ".", filter=_owned_by_root)
            self.call("import", str(self.folder / "root.tar"), name)
            return name
        finally:
            shutil.rmtree(root)

    @contextmanager
    def tagged(self, name: str, python: str) -> Iterator[None]:
        """For a while there is an image of this name, as if it had been pulled."""
        if self.name == "apptainer" or self._there(name):
            yield
            return
        self._make(name, python)
        try:
            yield
        finally:
            self.call("rmi", name)

    def _there(self, name: str) -> bool:
        return subprocess.run([self.name, "image", "inspect", name], capture_output=True).returncode == 0

    def run(self, image: str) -> None:
        """Run a container of ``image`` to its end. Raises RuntimeError when that does not work here."""
        if self.name == "apptainer":
            self.call("exec", "--containall", image, "true")
        else:
            self.call("run", "--rm", "--network", "bridge", image, "true")

    def containers(self) -> set[str]:
        """Names of the containers that verifiers' runtimes have made and not yet removed."""
        if self.name == "apptainer":
            listed = json.loads(self.call("instance", "list", "--json"))["instances"] or []
            names = [entry["instance"] for entry in listed]
        else:
            names = self.call("ps", "--all", "--format", "{{.Names}}").split()
        return {name for name in names if name.startswith("vf-")}

    def close(self) -> None:
        """Remove the images."""
        if self.name != "apptainer" and self._images:
            self.call("rmi", *self._images.values())


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def pythons() -> dict[str, str]:
    """Pythons of this machine by version, as "3.8": executable, oldest first."""
    found = {}
    for version in (f"3.{minor}" for minor in range(6, 15)):
        installed = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python{version}"))
        path = installed[0] if installed else shutil.which(f"python{version}")
        if path is not None:
            found[version] = str(path)
    return found
