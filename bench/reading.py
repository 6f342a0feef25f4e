"""How scripts read files and call tools: what cannot be read, or is not what it should be, ends them with one line."""

import contextlib
import struct
import subprocess
import sys


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
