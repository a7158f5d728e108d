"""werkzeug's development server with `support.wsgi_site`, on the port that it is given."""

from __future__ import annotations

import sys

from werkzeug.serving import run_simple

from support.wsgi_site import app

run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True)
