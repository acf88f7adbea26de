import runpy

from setuptools import setup

build = runpy.run_path("nsjoin/_build_setns.py")
setup(cffi_modules=["nsjoin/_build_setns.py:ffibuilder"], cmdclass={"build_ext": build["build_ext"]})
