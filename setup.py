"""Builds one core module per instruction set and dtype from one body, src_pyx/core.pyx.

FASTOPT_DEBUG=1 compiles without optimisation and with bounds checks; FASTOPT_SANITIZE=address,undefined adds
sanitizers. Neither changes a result: every fusion of a multiplication with an addition is written in the source.
"""

import os
import platform
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("FASTOPT_DEBUG", "0") not in ("", "0")
SANITIZE = os.environ.get("FASTOPT_SANITIZE", "")

PATHS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    PATHS["avx2"] = ["-mavx2", "-mfma"]
    PATHS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
DTYPES = {"float32": [], "float64": ["-DFASTOPT_DOUBLE"]}

compile_args = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-attributes"]
compile_args += ["-O1", "-g", "-UNDEBUG"] if DEBUG else ["-O3"]
compile_args += ["-pthread"]
link_args = ["-pthread"] + ([] if DEBUG or SANITIZE else ["-Wl,-s"] if sys.platform == "linux" else [])
if SANITIZE:
    compile_args += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
    link_args += [f"-fsanitize={SANITIZE}"]


def compiles(flag):
    """Whether the compiler builds and links a program with the flag."""
    compiler = os.environ.get("CC", "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("int main(void) { return 0; }\n")
        command = [*compiler, flag, str(source), "-o", str(source.with_suffix(""))]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


if compiles("-fopenmp"):
    compile_args.append("-fopenmp")
    link_args.append("-fopenmp")
else:
    warnings.warn("the compiler has no OpenMP: dense_forward and dense_backward will run on one thread", stacklevel=1)
if compiles("--param=max-completely-peeled-insns=2000"):
    # a tile's loops are unrolled whole, so that its sums stay in registers
    compile_args.append("--param=max-completely-peeled-insns=2000")

directives = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
}


DEPENDS = sorted(str(path) for folder, pattern in (("src_pyx", "*"), ("fastopt", "*.pxd"))
                 for path in Path(folder).glob(pattern))


def module(name, source, flags=()):
    return Extension(f"fastopt.{name}", [source], depends=DEPENDS, include_dirs=["src_pyx"],
                     extra_compile_args=[*compile_args, *flags], extra_link_args=link_args)


class build_ext_from_pyx(build_ext):
    """Generates the C when it is needed, so that an sdist is made without."""

    def run(self):
        for extension in self.extensions:
            # A folder a module: the cores have one source, and generated C stays out of the source tree. Only the
            # sources are taken over: cythonize hands the flags of one module on to the next of the same source.
            [generated] = cythonize([Extension(extension.name, extension.sources)],
                                    build_dir=f"build/cython/{extension.name}", include_path=["."],
                                    compiler_directives=directives, force=True)
            extension.sources = generated.sources
        super().run()


extensions = [module("kernels", "src_pyx/kernels.pyx"), module("_cpu", "src_pyx/_cpu.pyx")]
for isa, isa_flags in PATHS.items():
    for dtype, dtype_flags in DTYPES.items():
        extensions.append(module(f"_core_{isa}_{dtype}", "src_pyx/core.pyx", isa_flags + dtype_flags))

setup(ext_modules=extensions, cmdclass={"build_ext": build_ext_from_pyx},
      options={"build_ext": {"parallel": os.cpu_count()}})
