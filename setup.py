"""Builds the C++ kernels once per instruction set, so that one installation runs well on every CPU.

Everything else is in pyproject.toml. A variant that does not compile is left out with a warning: the package then
works with the remaining variants, or with the plain torch versions of the kernels.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("protocols/kernels/csrc")
FLAGS = ["-O3", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-g0", "-pthread"]
# GCC's own intrinsics headers set these warnings off; Clang does not know the second one.
FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]
# Set by `make sanitize`: a build that stops at every access outside of memory and at undefined behavior.
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if os.environ.get("SANITIZE") else []
FLAGS += [*CHECKS, "-O1", "-fno-wrapv", "-fno-omit-frame-pointer"] if CHECKS else []
VARIANTS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "win32":
    VARIANTS["v3"] = ["-march=x86-64-v3", "-mtune=generic"]
    VARIANTS["v4"] = ["-march=x86-64-v4", "-mtune=generic", "-mprefer-vector-width=512"]


def extension(variant: str, flags: list[str]) -> Extension:
    """One build of the kernels, as the module protocols.kernels._native_<variant>."""
    import pybind11

    return Extension(
        f"protocols.kernels._native_{variant}",
        sources=[str(SOURCES / "module.cpp")],
        depends=[str(p) for p in sorted(SOURCES.glob("*.hpp"))],
        include_dirs=[pybind11.get_include()],
        define_macros=[("KERNELS_MODULE", f"_native_{variant}")],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=["-pthread", *CHECKS],
        language="c++",
        optional=True,
    )


class BuildVariants(build_ext):
    """Compile the variants side by side and go on without those that fail."""

    def build_extensions(self) -> None:
        with ThreadPoolExecutor(max_workers=len(self.extensions)) as pool:
            failures = [f for f in pool.map(self._attempt, self.extensions) if f]
        if failures:
            rest = len(failures) < len(self.extensions)
            self.warn(
                f"native kernels not built: {'; '.join(failures)}. "
                f"{'The other builds' if rest else 'Plain torch versions'} will be used, which are slower; "
                "install a C++17 compiler and reinstall to have all. protocols.kernels.info() says what is in use."
            )
        self.extensions = [e for e in self.extensions if Path(self.get_ext_fullpath(e.name)).exists()]

    def _attempt(self, ext: Extension) -> str | None:
        apart = copy(self)  # all variants compile one source file: each needs a folder for its object file
        apart.build_temp = str(Path(self.build_temp) / ext.name)
        try:
            apart.build_extension(ext)
        except Exception as error:
            return f"{ext.name.rpartition('_')[2]} ({type(error).__name__}; the compiler's messages are above)"
        return None


setup(ext_modules=[extension(*item) for item in VARIANTS.items()], cmdclass={"build_ext": BuildVariants})
