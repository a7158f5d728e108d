"""Flask: the site of `pgstore demo`, with users, their devices and an administrator.

pip install 'pgstore[agents,flask]' && python examples/flask_app.py

Its views and templates, in pgstore/demo_site, are an example of their own: signing in and out, a
guard, a device list, tokens against forged forms, and pages that no cache keeps.
"""

import os

from pgstore import MemoryStore, generate_random_key
from pgstore.demo_site import MERGE, create_app

store = MemoryStore(generate_random_key(32), merge=MERGE)
app = create_app(store, database="the memory of this process")

if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "8000")))
