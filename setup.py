from __future__ import annotations

import runpy
import sys
import sysconfig

from setuptools import setup


def bdist_wheel_options() -> dict[str, str]:
    """The wheel's tag. cffi uses the limited API on CPython, so that what 3.9 or newer builds runs on all of them.

    Not on PyPy and free-threaded builds, which have none; and what 3.15 builds has a file name that older ones do not
    look for.
    """
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return {}
    return {"py_limited_api": "cp315" if sys.version_info >= (3, 15) else "cp39"}


build = runpy.run_path("nsjoin/_build_setns.py")
setup(
    cffi_modules=["nsjoin/_build_setns.py:ffibuilder"],
    cmdclass={"build_ext": build["build_ext"]},
    options={"bdist_wheel": bdist_wheel_options()},
)
