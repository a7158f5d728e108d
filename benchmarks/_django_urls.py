"""The pages of the site on Django: `ROOT_URLCONF` of `_sites`."""

from __future__ import annotations

from _common import PAYLOAD
from django.http import HttpRequest, HttpResponse
from django.urls import path

_data = dict(PAYLOAD)


def new(request: HttpRequest) -> HttpResponse:
    getattr(request, "session", _data).update(PAYLOAD)
    return HttpResponse("welcome")


def read(request: HttpRequest) -> HttpResponse:
    data = getattr(request, "session", _data)
    return HttpResponse(f"{data['user_id']} {data['csrf_token']}")


def write(request: HttpRequest) -> HttpResponse:
    data = getattr(request, "session", _data)
    data["n"] = data["n"] + 1
    return HttpResponse(f"{data['user_id']} {data['n']}")


urlpatterns = [path("new", new), path("read", read), path("write", write)]
