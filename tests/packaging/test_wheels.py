"""The wheels of core and of all plugins, built and installed into empty environments without paddle.

No network: the few dependencies of core are linked from the environment that runs the tests.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

PATH_AND_MAIN = "import sys; sys.path.insert(0, sys.argv[1]); import llmctl.cli; llmctl.cli.main(sys.argv[2:])"

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = {f"llmctl_{folder.name}": folder for folder in sorted((ROOT / "plugins").iterdir()) if folder.is_dir()}
SOURCES = {"llmctl": ROOT, "llmctl_ops": ROOT / "ops", **PLUGINS}


def run(*command, check=True, **options):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **options)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Name of the package -> its wheel, built from a copy so that nothing is left in the sources."""
    folder = tmp_path_factory.mktemp("wheels")
    skip = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "runs", "tests", "plugins")
    for name, source in SOURCES.items():
        shutil.copytree(source, folder / name, ignore=skip)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        run(*command, "--wheel-dir", folder, folder / name)
    return {name: next(folder.glob(f"{name}-*.whl")) for name in SOURCES}


def closure(requirements):
    """The installed distributions that these requirements bring, without extras."""
    names = [re.match(r"[\w.-]+", line)[0] for line in requirements if "extra ==" not in line]
    found = {}
    while names:
        try:
            distribution = metadata.distribution(names.pop())
        except metadata.PackageNotFoundError:
            continue
        if distribution.name not in found:
            found[distribution.name] = distribution
            requires = distribution.requires or []
            names += [re.match(r"[\w.-]+", line)[0] for line in requires if "extra ==" not in line]
    return found.values()


def requirements(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return re.findall(r"^Requires-Dist: (.*)$", archive.read(name).decode(), re.MULTILINE)


def environment_with(folder, wheels):
    """An environment with these wheels and what core requires; gives the folder of its commands."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    site = next(folder.glob("lib/python3*/site-packages"))
    for distribution in closure(requirements(wheels[0])):
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            (site / top).symlink_to(distribution.locate_file(top))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", *wheels)
    return folder / "bin"


@pytest.fixture(scope="module")
def core_alone(wheels, tmp_path_factory):
    return environment_with(tmp_path_factory.mktemp("core"), [wheels["llmctl"]])


@pytest.fixture(scope="module")
def core_and_family(wheels, tmp_path_factory):
    return environment_with(tmp_path_factory.mktemp("family"), [wheels["llmctl"], wheels["llmctl_llama"]])


def test_the_wheels_hold_code_data_and_licence_but_no_tests(wheels):
    names = {name: zipfile.ZipFile(wheel).namelist() for name, wheel in wheels.items()}
    for name, wheel in wheels.items():
        tops = {entry.partition("/")[0] for entry in names[name]}
        assert tops == {name, f"{name}-{wheel.name.split('-')[1]}.dist-info"}
        assert any(entry.endswith("LICENSE") for entry in names[name])
    assert "llmctl/py.typed" in names["llmctl"]
    packed = {name for entries in names.values() for name in entries}
    for package, source in (("llmctl", ROOT / "core"), ("llmctl_llama", SOURCES["llmctl_llama"])):
        files = {path.relative_to(source) for path in (source / package).rglob("*") if path.is_file()}
        shipped = {file.as_posix() for file in files if not any(p.startswith((".", "__pycache__")) for p in file.parts)}
        assert shipped <= packed


def test_the_wheel_of_the_operators_holds_its_library_and_serves_every_python(wheels):
    if not shutil.which(os.environ.get("CXX", "g++").split()[0]):
        pytest.skip("no C++ compiler")
    assert "llmctl_ops/libllmctl_ops.so" in zipfile.ZipFile(wheels["llmctl_ops"]).namelist()
    assert "-py3-none-" in wheels["llmctl_ops"].name


def test_core_alone_helps_and_says_how_to_install_a_family(core_alone):
    assert "Usage: llmctl" in run(core_alone / "llmctl", "--help").stdout
    models = run(core_alone / "llmctl", "models", check=False)
    assert "pip install llmctl-" in models.stdout + models.stderr


def test_a_family_is_listed_without_paddle(core_and_family):
    assert "llama" in run(core_and_family / "llmctl", "models").stdout


def test_without_paddle_finetuning_says_in_one_line_what_to_install(core_and_family, tmp_path):
    done = run(core_and_family / "llmctl", "--model", "llama", "finetune", "--output", "out", check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install 'llmctl[cpu]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_version_of_the_wheel_is_that_of_the_package(core_alone, wheels):
    version = wheels["llmctl"].name.split("-")[1]
    assert run(core_alone / "llmctl", "--version").stdout.split()[-1] == version


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_and_core_alone_list_its_families_with_their_evidence(name, core_alone, wheels, tmp_path):
    with zipfile.ZipFile(wheels[name]) as archive:
        archive.extractall(tmp_path)
    entries = next(tmp_path.glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")
    families = re.findall(r"^(\w+) = ", entries, re.MULTILINE)
    assert families and {*families} == {*json.loads((tmp_path / name / "evidence.json").read_text())}
    command = [core_alone / "python", "-c", PATH_AND_MAIN, tmp_path, "models", "--matrix", "--json"]
    table = json.loads(run(*command).stdout)
    assert {family: row["convert"]["label"] for family, row in table.items()} == dict.fromkeys(families, "yes")
