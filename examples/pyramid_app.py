"""Pyramid: its security policy asks the session who is there, and views ask Pyramid.

pip install pgstore pyramid waitress && python examples/pyramid_app.py
"""

import os

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPSeeOther
from pyramid.response import Response
from pyramid.security import forget, remember
from waitress import serve

from pgstore import MemoryStore, generate_random_key
from pgstore.ext.wsgi import SessionMiddleware

store = MemoryStore(generate_random_key(32))


def session(request):
    return request.environ["pgstore.session"]


class SessionPolicy:
    """Pyramid's ISecurityPolicy: whoever is signed in may do everything."""

    def identity(self, request):
        return request.session.user_key

    authenticated_userid = identity

    def permits(self, request, context, permission):
        return request.session.user_key is not None

    def remember(self, request, userid, **kw):
        request.session.login(userid)
        return []  # the middleware sets the cookie

    def forget(self, request, **kw):
        request.session.logout()
        return []


def home(request):
    request.session["views"] = request.session.get("views", 0) + 1
    return Response(f"{request.identity or 'guest'}: {request.session['views']} views\n")


def login(request):
    return HTTPSeeOther("/", headers=remember(request, request.POST["user"]))


def logout(request):
    return HTTPSeeOther("/", headers=forget(request))


def account(request):
    return Response(f"The account of {request.identity}\n")


with Configurator() as config:
    config.add_request_method(session, property=True)
    config.set_security_policy(SessionPolicy())
    for name, view, settings in [
        ("/", home, {}),
        ("/login", login, {"request_method": "POST"}),
        ("/logout", logout, {"request_method": "POST"}),
        ("/account", account, {"permission": "own"}),
    ]:
        config.add_route(name, name)
        config.add_view(view, route_name=name, **settings)
    app = SessionMiddleware(config.make_wsgi_app(), store)

if __name__ == "__main__":
    serve(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
