import sys

from etcdfast.supervisor.main import main

sys.exit(main())
