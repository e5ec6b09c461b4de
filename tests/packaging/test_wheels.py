"""The wheels of core and of all plugins, built and installed into empty environments, most of them without paddle.

No network: the few dependencies of core are linked from the environment that runs the tests.
"""

import json
import os
import platform
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
    left_over = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "runs")

    def skip(path, names):
        # Core has a package of the name plugins too.
        beside = {"tests", "plugins"} if Path(path) in SOURCES.values() else set()
        return left_over(path, names) | beside & set(names)

    for name, source in SOURCES.items():
        shutil.copytree(source, folder / name, ignore=skip)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        run(*command, "--wheel-dir", folder, folder / name)
    return {name: next(folder.glob(f"paddle_{name}-*.whl")) for name in SOURCES}


def names_in(requirements, extra="none"):
    """The distributions that these lines name, with those of an extra."""
    wanted = [line for line in requirements if "extra ==" not in line or f'extra == "{extra}"' in line]
    own = [match[1] for line in wanted if (match := re.match(r"paddle-llmctl\[(\w+)\]", line))]
    names = [re.match(r"[\w.-]+", line)[0] for line in wanted]
    return [name for name in names if name != "paddle-llmctl"] + [
        name for o in own for name in names_in(requirements, o)
    ]


def closure(names):
    """The installed distributions that these bring, without extras of theirs."""
    found, names = {}, [*names]
    while names:
        try:
            distribution = metadata.distribution(names.pop())
        except metadata.PackageNotFoundError:
            continue
        if distribution.name not in found:
            found[distribution.name] = distribution
            names += names_in(distribution.requires or [])
    return found.values()


def requirements(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return re.findall(r"^Requires-Dist: (.*)$", archive.read(name).decode(), re.MULTILINE)


def environment_with(folder, wheels, extra="none"):
    """An environment with these wheels and what core requires, with an extra; gives the folder of its commands."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    site = next(folder.glob("lib/python3*/site-packages"))
    for distribution in closure(names_in(requirements(wheels[0]), extra)):
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


@pytest.fixture(scope="module")
def paddle_without_operators(wheels, tmp_path_factory):
    """An environment that never had paddle-llmctl-ops."""
    return environment_with(tmp_path_factory.mktemp("paddle"), [wheels["llmctl"], wheels["llmctl_llama"]], "cpu")


@pytest.fixture(scope="module")
def run_without_paddle(wheels, tmp_path_factory):
    own = [wheels["llmctl"], wheels["llmctl_llama"], wheels["llmctl_ops"]]
    return environment_with(tmp_path_factory.mktemp("run"), own, "run")


def test_the_wheels_hold_code_data_and_licence_but_no_tests(wheels):
    names = {name: zipfile.ZipFile(wheel).namelist() for name, wheel in wheels.items()}
    for name, wheel in wheels.items():
        tops = {entry.partition("/")[0] for entry in names[name]}
        assert tops == {name, f"paddle_{name}-{wheel.name.split('-')[1]}.dist-info"}
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


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc", reason="symbols of x86-64 glibc"
)
def test_the_wheel_of_the_operators_runs_on_linux_of_2014(wheels, tmp_path):
    if not shutil.which(os.environ.get("CXX", "g++").split()[0]):
        pytest.skip("no C++ compiler")
    beside = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", tmp_path, wheels["llmctl_ops"]]
    made = subprocess.run(command, env=os.environ | beside, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert re.search(
        r"-py3-none-manylinux_2_(5|12|17)_x86_64\.|manylinux2014_x86_64\.", next(tmp_path.glob("*.whl")).name
    )


def test_core_alone_helps_and_says_how_to_install_a_family(core_alone):
    assert "Usage: llmctl" in run(core_alone / "llmctl", "--help").stdout
    models = run(core_alone / "llmctl", "models", check=False)
    assert "pip install 'paddle-llmctl[NAME]'" in models.stdout + models.stderr


def test_a_family_is_listed_without_paddle(core_and_family):
    assert "llama" in run(core_and_family / "llmctl", "models").stdout


def test_without_paddle_finetuning_says_in_one_line_what_to_install(core_and_family, tmp_path):
    done = run(core_and_family / "llmctl", "--model", "llama", "finetune", "--output", "out", check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install 'paddle-llmctl[cpu]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_compiled_operators_every_command_runs_and_engines_answer_alike(paddle_without_operators, tmp_path):
    python, llmctl = paddle_without_operators / "python", paddle_without_operators / "llmctl"
    assert "No module named 'llmctl_ops'" in run(python, "-c", "import llmctl_ops", check=False).stderr
    starter = SOURCES["llmctl_llama"] / "llmctl_llama" / "starter"
    ask = ["--prompt", "Deny this: Tom has a red kite.", "--max-new-tokens", "12", "--no-stream"]
    expected = run(sys.executable, "-m", "llmctl", "generate", starter / "model", *ask)
    assert len(expected.stdout) > 20 and expected.stderr == ""
    config = {
        "model": {"path": str(starter / "model")},
        "data": {"train": str(starter / "data" / "dev.jsonl"), "src_length": 64, "max_length": 128},
        "train": {"max_steps": 1, "batch_size": 2},
        "output": {"dir": "run"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    for engine in ("auto", "dynamic", "fused"):
        done = run(llmctl, "generate", starter / "model", "--engine", engine, *ask)
        assert done.stdout == expected.stdout, engine
        assert len(done.stderr.splitlines()) == 1 and "paddle-llmctl-ops is not installed" in done.stderr
    run(
        llmctl,
        "export",
        starter / "model",
        "--engine",
        "fused",
        "--weights",
        "float32",
        "--output",
        tmp_path / "packed",
    )
    assert run(llmctl, "generate", tmp_path / "packed", *ask).stdout == expected.stdout
    run(llmctl, "bench", tmp_path / "packed", "--rounds", "1", "--new-tokens", "4", "--prompt-tokens", "8")
    run(llmctl, "--model", "llama", "plan", "config.yaml", cwd=tmp_path)
    trained = run(llmctl, "--model", "llama", "finetune", "config.yaml", cwd=tmp_path)
    assert trained.stdout.count("paddle-llmctl-ops is not installed") == 1 and (tmp_path / "run" / "model").is_dir()
    assert "pip install paddle-llmctl-ops" in run(llmctl, "ops", "doctor").stdout


def test_the_extra_run_generates_on_several_threads_without_paddle(run_without_paddle):
    python, llmctl = run_without_paddle / "python", run_without_paddle / "llmctl"
    assert "No module named 'paddle'" in run(python, "-c", "import paddle", check=False).stderr
    model = SOURCES["llmctl_llama"] / "llmctl_llama" / "starter" / "model"
    ask = ["--prompt", "Deny this: Tom has a red kite.", "--max-new-tokens", "12", "--no-stream"]
    expected = run(sys.executable, "-m", "llmctl", "generate", model, *ask)
    done = run(llmctl, "generate", model, *ask)
    assert (done.stdout, done.stderr) == (expected.stdout, "")
    set_threads = "from llmctl_ops import library; library.set_threads(2); print(library.set_threads(1))"
    assert run(python, "-c", set_threads).stdout == "2\n"


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
