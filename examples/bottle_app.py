"""Bottle: sign in under any name, and a counter that survives it.

pip install pgstore bottle && python examples/bottle_app.py
"""

import os

from bottle import Bottle, redirect, request, run, template

from pgstore import MemoryStore, generate_random_key
from pgstore.ext.wsgi import SessionMiddleware

app = Bottle()
store = MemoryStore(generate_random_key(32))

PAGE = """<!doctype html><title>pgstore and Bottle</title>
% if session.user_key:
<p>Hello {{session.user_key}}.
<form method="post" action="/logout"><button>Sign out</button></form>
% else:
<form method="post" action="/login"><input name="user" required><button>Sign in</button></form>
% end
<p>Page views: {{session["views"]}}
"""


@app.get("/")
def home():
    session = request.environ["pgstore.session"]
    session["views"] = session.get("views", 0) + 1
    return template(PAGE, session=session)


@app.post("/login")
def login():
    request.environ["pgstore.session"].login(request.forms.user)
    redirect("/")


@app.post("/logout")
def logout():
    request.environ["pgstore.session"].logout()
    redirect("/")


if __name__ == "__main__":
    run(SessionMiddleware(app, store), port=int(os.environ.get("PORT", "8000")))
