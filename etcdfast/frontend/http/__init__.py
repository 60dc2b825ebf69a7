"""HTTP that is not gRPC on a frontend's ports: health, version, metrics, the JSON gateway, websockets.

`server.HttpServer` turns what `_ext/fronthttp` tells into requests, `routes.Routes` knows whose they are.
Everything runs on the frontend's one thread, between two turns of its loop: what takes longer than a millisecond
belongs into `Request.respond_later`.
"""
