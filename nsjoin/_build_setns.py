"""Builds the extension: compiles the joiner, embeds it as bytes, and has cffi make the module around the shim.

Run by setup.py through exec, so it imports nothing of the package.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cffi import FFI
from setuptools.command import build_ext as setuptools_build_ext

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent

# Machines that syscalls.h has system-call stubs for; elsewhere the same source is linked with libc, statically.
FREESTANDING = ("x86_64", "aarch64")
COMMON_FLAGS = ("-Os", "-std=gnu11", "-static", "-no-pie", "-fno-pie", "-fno-stack-protector")
FREESTANDING_FLAGS = (
    "-ffreestanding",
    "-nostdlib",
    "-fno-asynchronous-unwind-tables",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,noseparate-code",
    "-s",
)


def compile_joiner(
    output: str | Path, compiler: Sequence[str] | None = None, extra_flags: Sequence[str] = (), *, hosted: bool = False
) -> None:
    """Compile joiner.c to the program ``output``, with ``compiler`` (a list), $CC, or the interpreter's own."""
    if compiler is None:
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    machine = subprocess.run([*compiler, "-dumpmachine"], check=True, capture_output=True, text=True).stdout
    hosted = hosted or not machine.startswith(FREESTANDING)
    flags = ("-DNSJOIN_HOSTED",) if hosted else FREESTANDING_FLAGS
    subprocess.run(
        [*compiler, *COMMON_FLAGS, *flags, *extra_flags, "-o", str(output), str(HERE / "_c/joiner.c")], check=True
    )


def write_image_header(directory: str | Path, compiler: Sequence[str] | None = None) -> None:
    """Write joiner_image.h, the joiner as an array of bytes, into ``directory``."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        program = Path(scratch, "joiner")
        compile_joiner(program, compiler)
        image = program.read_bytes()
    rows = (", ".join(map(str, image[start : start + 32])) for start in range(0, len(image), 32))
    text = "static const unsigned char joiner_image[] = {\n" + ",\n".join(rows) + "\n};\n"
    (directory / "joiner_image.h").write_text(text)


class build_ext(setuptools_build_ext.build_ext):  # noqa: N801 - the name that setuptools wants
    """build_ext that compiles the joiner first: cffi calls ``pre_run`` just before it writes the module's source."""

    def pre_run(self, ext: Any, ffi: FFI) -> None:  # noqa: ARG002 - cffi's signature
        write_image_header(self.build_temp)
        ext.include_dirs.append(self.build_temp)


def declarations() -> str:
    """The header as cffi wants it: without the preprocessor's lines."""
    return re.sub(r"^#.*$", "", (HERE / "_c/shared.h").read_text(), flags=re.MULTILINE)


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "nsjoin._setns",
    '#include "shared.h"\n#include <unistd.h>\n',
    sources=["nsjoin/_c/shim.c"],
    depends=sorted(f"nsjoin/_c/{file.name}" for file in (HERE / "_c").glob("*.[ch]") if file.name != "shim.c"),
    include_dirs=["nsjoin/_c"],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=["-std=gnu11", "-O2"],
    extra_link_args=["-Wl,-z,now"],  # the vfork child must not run the dynamic linker in our memory
)
