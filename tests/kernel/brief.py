"""gunicorn's configuration for a plugin whose lease lasts for $LEASE seconds. `gunicorn -c python:tests.kernel.brief`.

Not to be imported by a test, which would have that lease too.
"""

from __future__ import annotations

import os

from plugin.state import lease

lease.SECONDS = int(os.environ["LEASE"])
lease.EVERY = lease.SECONDS / 3

from plugin.gunicorn_conf import *  # noqa: E402, F403 (the module that renews it is loaded after that)
