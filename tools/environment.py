"""Makes a virtual environment with llmctl, its plugins and its operators, or finds that it is made already.

Run with: python tools/environment.py VENV EXTRA... ; extras are those of pyproject.toml, versions come from constraints/.
Only the standard library is needed, and even an unsupported Python must be able to say so: no newer syntax here.
"""

import glob
import hashlib
import os
import shutil
import subprocess
import sys
import venv

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST, NEWEST = (3, 10), (3, 13)


def read(path):
    """The bytes of a file; nothing if it is absent."""
    if not os.path.exists(path):
        return b""
    with open(path, "rb") as stream:
        return stream.read()


def sources_of_kernels():
    """The files that the compiled operators are made of; a change of one means building them anew."""
    folder = os.path.join(ROOT, "ops", "csrc", "cpu")
    return [os.path.join(ROOT, "ops", "setup.py")] + [os.path.join(folder, name) for name in sorted(os.listdir(folder))]


def main(folder, extras):
    """Makes the environment ``folder`` with these extras of llmctl."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.exit(
            "llmctl needs Python %d.%d to %d.%d, this is %s. Name another: make PYTHON=python3.12 ..."
            % (OLDEST + NEWEST + (sys.version.split()[0],))
        )
    plugins = [os.path.join(ROOT, "plugins", name) for name in sorted(os.listdir(os.path.join(ROOT, "plugins")))]
    plugins = [path for path in plugins if os.path.exists(os.path.join(path, "pyproject.toml"))]
    plugins.append(os.path.join(ROOT, "ops"))
    constraints = os.path.join(ROOT, "constraints", "py%d%d.txt" % sys.version_info[:2])
    inputs = [os.path.join(path, "pyproject.toml") for path in [ROOT, *plugins]] + [constraints, *sources_of_kernels()]
    key = hashlib.sha256(b"\0".join([sys.version.encode(), ROOT.encode()] + [read(path) for path in inputs]))
    key.update(" ".join(sorted(extras)).encode())
    stamp = os.path.join(folder, "." + "-".join(["installed", *sorted(extras)]))
    if read(stamp) == key.hexdigest().encode():
        return
    install(folder, extras, plugins, constraints)
    with open(stamp, "w") as stream:
        stream.write(key.hexdigest())


def building():
    """The environment of the build: where there is a compiler, kernels that do not compile are an error."""
    compiler = os.environ.get("CXX", "g++").split()[0]
    return dict({"LLMCTL_OPS_BUILD": "require"} if shutil.which(compiler) else {}, **os.environ)


def install(folder, extras, plugins, constraints):
    """Creates the environment where it is absent or of another Python, and installs into it."""
    python = os.path.join(folder, "bin", "python")
    code = "import sys; print(sys.version)"
    same = os.path.exists(python) and subprocess.run([python, "-c", code], stdout=subprocess.PIPE).stdout.strip()
    if not same or same.decode() != sys.version.strip():
        print("making the environment %s with Python %s" % (folder, sys.version.split()[0]), flush=True)
        venv.create(folder, with_pip=True, clear=True)
    remove_former(folder, python)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--constraint", constraints]
    subprocess.run(pip + ["setuptools"], check=True)
    editable = ["--editable", "%s[%s]" % (ROOT, ",".join(extras))]
    for plugin in plugins:
        editable += ["--editable", plugin]
    subprocess.run(pip + ["--no-build-isolation"] + editable, check=True, env=building())


def remove_former(folder, python):
    """Uninstalls distributions of this project under their former names, whose families would be there twice."""
    found = glob.glob(os.path.join(folder, "lib", "python3*", "site-packages", "llmctl*.dist-info"))
    names = sorted({os.path.basename(path).split("-")[0].replace("_", "-") for path in found})
    if names:
        subprocess.run([python, "-m", "pip", "uninstall", "--yes", "--quiet"] + names, check=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2:])
    except subprocess.CalledProcessError as failure:
        sys.exit("the installation failed: %s" % " ".join(failure.cmd))
