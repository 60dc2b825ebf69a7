"""python -m etcdfast.bench"""

import sys

from etcdfast.bench.cli import main

sys.exit(main())
