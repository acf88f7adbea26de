# The compiled module: cffi checks each call at run time, tests/test_build.py that each name exists.
from typing import Any, NoReturn, TypeAlias

CData: TypeAlias = Any

class _Lib:
    environ: Any
    def nsjoin_give_up(self, call: CData, step: int, index: int, error: int) -> NoReturn: ...
    def __getattr__(self, name: str) -> Any: ...

ffi: Any
lib: _Lib
