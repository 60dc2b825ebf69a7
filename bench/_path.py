"""Imported first by the scripts here: makes `etcdfast` importable from a checkout that is not installed."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
