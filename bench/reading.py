"""How scripts read files, call tools and need libraries: what cannot be read, is not what it should be, or is not
installed, ends them with one line. Imported before libraries that a machine may lack.
"""

import contextlib
import struct
import subprocess
import sys


def report_missing_library(kind, fault, trace):
    """Takes the place of sys.excepthook, which ends scripts with exit code 1."""
    if issubclass(kind, ModuleNotFoundError):
        print(f"{sys.argv[0]}: needs the Python package {fault.name}, which is not installed", file=sys.stderr)
    else:
        sys.__excepthook__(kind, fault, trace)


sys.excepthook = report_missing_library


@contextlib.contextmanager
def reading(path):
    """Around the reading of a file: what is not found in it is the file's fault."""
    try:
        yield
    except OSError as fault:
        sys.exit(f"{path}: {fault.strerror}")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as fault:
        sys.exit(f"{path}: not what it should be: {type(fault).__name__}: {' '.join(str(fault).split())}")


def output_of(command):
    """What a tool prints on stdout."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    except OSError as fault:
        sys.exit(f"{command[0]}: {fault.strerror}")
    except subprocess.CalledProcessError as fault:
        sys.exit(f"{command[0]}: failed with exit code {fault.returncode}")
