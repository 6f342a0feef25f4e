"""What these scripts share with those of bench/. Imported first, as it tells of libraries that are missing."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
from reading import output_of, reading  # noqa: E402, F401: the folder is known only now
