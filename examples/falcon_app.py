"""Falcon: a JSON API with a shopping cart, and a part of it for signed-in users only.

pip install pgstore falcon && python examples/falcon_app.py
"""

import os
from wsgiref.simple_server import make_server

import falcon

from pgstore import MemoryStore, generate_random_key
from pgstore.ext.wsgi import SessionMiddleware

store = MemoryStore(generate_random_key(32))


class Request(falcon.Request):
    @property
    def session(self):
        return self.env["pgstore.session"]


def signed_in(request, response, resource, params):
    if request.session.user_key is None:
        raise falcon.HTTPUnauthorized(description="POST your name to /login first.")


class Login:
    def on_post(self, request, response):
        request.session.login(request.get_media()["user"])
        response.status = falcon.HTTP_204

    def on_delete(self, request, response):
        request.session.logout()
        response.status = falcon.HTTP_204


class Cart:
    def on_get(self, request, response):
        response.media = request.session.get("cart", {})

    def on_put(self, request, response):
        request.session["cart"] = {**request.session.get("cart", {}), **request.get_media()}
        response.status = falcon.HTTP_204


@falcon.before(signed_in)
class Orders:
    def on_post(self, request, response):
        ordered = request.session.pop("cart", {})
        response.media = {"user": request.session.user_key, "ordered": ordered}


api = falcon.App(request_type=Request)
api.add_route("/login", Login())
api.add_route("/cart", Cart())
api.add_route("/orders", Orders())
app = SessionMiddleware(api, store)

if __name__ == "__main__":
    with make_server("127.0.0.1", int(os.environ.get("PORT", "8000")), app) as server:
        server.serve_forever()
