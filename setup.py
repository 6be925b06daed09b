"""Builds the Cython and C kernels. Metadata is in pyproject.toml.

NANOVLLM_CYTHON_DEBUG=1 builds with every Cython check on and little optimisation, for tests.
NANOVLLM_SANITIZE=address,undefined (or thread) adds the sanitizers; see `make sanitize`.
"""

import os
import platform
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("NANOVLLM_CYTHON_DEBUG") == "1"
SANITIZE = os.environ.get("NANOVLLM_SANITIZE", "")
CSRC = "nanovllm/kernels/csrc"

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,  # entries check shapes once; loops run on pointers
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "cdivision": True,  # C's division: operands are never negative
    "embedsignature": True,
}

FLAGS = [
    "-O1" if DEBUG or SANITIZE else "-O3",
    "-g1",  # line numbers in profiles and sanitizer reports, at no cost in speed
    "-fno-math-errno",  # sqrtf may then be one instruction; nobody reads errno here
    "-ffp-contract=fast",  # a * b + c is one fused operation wherever the level has it, in every kernel alike
    "-Wno-psabi",  # vectors wider than the baseline's registers are never passed between files
]
# No -ffast-math: softmax and masking rely on infinities, sampling on NaN checks.
if SANITIZE:
    FLAGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]

X86 = platform.machine() in ("x86_64", "AMD64")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
AVX512_BF16 = [*AVX512, "-mavx512bf16", "-mavx512vnni"]
# One source compiled for each level; isa.c chooses at run time, so one wheel runs everywhere.
LEVEL_FLAGS = {"level_scalar.c": []}
if X86:
    LEVEL_FLAGS |= {
        "level_avx2.c": AVX2,
        "level_avx512.c": AVX512,
        "level_avx512_bf16.c": AVX512_BF16,
        "level_amx.c": [*AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
        "level_amx_emulated.c": AVX512_BF16,
        "level_amx_emulated_avx2.c": AVX2,
    }


class BuildExt(build_ext):
    """Gives each level's C file its own flags, which setuptools cannot express for one extension."""

    def build_extensions(self):
        """Compile with the flags of the file at hand."""
        compile_one = self.compiler._compile

        def with_level_flags(obj, src, ext, cc_args, extra_postargs, pp_opts):
            flags = LEVEL_FLAGS.get(Path(src).name, [])
            compile_one(obj, src, ext, cc_args, [*extra_postargs, *flags], pp_opts)

        self.compiler._compile = with_level_flags
        super().build_extensions()


def extension(name, *c_files):
    """One Cython module nanovllm.kernels.NAME with the C files that it alone links."""
    return Extension(
        f"nanovllm.kernels.{name}",
        [f"nanovllm/kernels/{name}.pyx", *(f"{CSRC}/{c}" for c in c_files)],
        include_dirs=["nanovllm/kernels"],
        depends=[str(header) for header in sorted(Path(CSRC).glob("*.h"))],
        extra_compile_args=FLAGS,
        extra_link_args=[f"-fsanitize={SANITIZE}"] if SANITIZE else [],
        libraries=["m"],
    )


EXTENSIONS = [
    extension("isa", "isa.c", *LEVEL_FLAGS),
    extension("team", "team.c"),
    extension("blas"),
    extension("linear", "pack.c"),
    extension("rows"),
    extension("cascade"),
    extension("attend"),
    extension("forward"),
    extension("head"),
    extension("decoder_model"),
    extension("decoder"),
    extension("ops"),
    extension("sampling_step"),
    extension("sampling_logits"),
    extension("sampling_filter"),
    extension("sampling"),
    extension("sampler"),
    extension("top_rows"),
    extension("scorer"),
    extension("ceilings"),
    extension("timing"),
]

setup(
    ext_modules=cythonize(EXTENSIONS, compiler_directives=DIRECTIVES, annotate=DEBUG, force=DEBUG),
    cmdclass={"build_ext": BuildExt},
    options={"build_ext": {"parallel": os.cpu_count()}},
)
