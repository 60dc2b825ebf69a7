"""python -m etcdfast.utl"""

import sys

from etcdfast.utl.cli import main

sys.exit(main())
