"""JWT: signed and verified in a process of its own, `python -m etcdfast.apply.auth.signing JSON`.

The process reads the keys itself, at its start: a reload starts another and lets the old one go only when the new one
can work. It has no low priority, for requests wait for it; what it has verified once is not asked again.

Source: etcd's server/auth/{jwt,options}; golang-jwt for what a token may be like.
"""

import json
import os
import struct
import sys
import time

from etcdfast.apply.auth.helper import Helper, HelperError, say_ready, serve

SIGN, VERIFY = range(2)
_VERIFIED = struct.Struct("<QQ")  # ns it is still valid, 0 for ever; auth revision; then the user

MISSING_KEY = "auth: missing key data"
KEY_MISMATCH = "auth: public and private keys don't match"
VERIFY_ONLY = "auth: token signing attempted with verify-only key"


def helper(options, doorbell):
    """Started, and known to have its keys. `options`: of config/authtoken. Errors: HelperError."""
    made = Helper("etcdfast.apply.auth.signing", {"jwt": options}, doorbell)
    made.start()
    made.wait_ready()
    return made


def sign_job(user, revision):
    return struct.pack("<Q", revision) + user


def read_verified(answer):
    """(ns left or 0, revision, user)"""
    left_ns, revision = _VERIFIED.unpack_from(answer)
    return left_ns, revision, answer[_VERIFIED.size :]


# ---- the process ----


class Signer:
    """`options`: sign-method, pub-key, priv-key (paths), ttl (seconds). Errors: HelperError."""

    def __init__(self, options):
        import jwt

        self._jwt = jwt
        self._method = options["sign-method"]
        self._ttl_seconds = options["ttl"]
        algorithm = _algorithms()[self._method]
        # etcd takes a key of any length.
        algorithm.check_key_length = lambda key: None
        self._coder = jwt.PyJWS(algorithms=[])
        self._coder.register_algorithm(self._method, algorithm)
        self._private, self._public = _keys(self._method, options)

    def sign(self, user, revision):
        if self._private is None:
            raise HelperError(VERIFY_ONLY)
        claims = {
            "exp": int(time.time()) + self._ttl_seconds,
            "revision": revision,
            "username": user.decode("utf-8", "replace"),
        }
        payload = json.dumps(claims, separators=(",", ":")).encode()
        try:
            return self._coder.encode(payload, self._private, self._method).encode()
        except Exception as err:
            raise HelperError(_one_line(err)) from None

    def verify(self, token):
        try:
            claims = json.loads(self._coder.decode(token, self._public, [self._method]))
        except Exception as err:
            raise HelperError(_one_line(err)) from None
        now = time.time()
        expires, begins = (_moment(claims, name) for name in ("exp", "nbf"))
        if expires is not None and now >= expires:
            raise HelperError("token has invalid claims: token is expired")
        if begins is not None and now < begins:
            raise HelperError("token has invalid claims: token is not valid yet")
        user, revision = claims.get("username"), claims.get("revision")
        if not isinstance(user, str):
            raise HelperError("failed to obtain user claims from jwt token")
        if isinstance(revision, bool) or not isinstance(revision, int | float) or not 0 <= revision < 1 << 64:
            raise HelperError("failed to obtain revision claims from jwt token")
        left_ns = max(int((expires - now) * 1e9), 1) if expires is not None else 0
        return _VERIFIED.pack(min(left_ns, (1 << 63) - 1), int(revision)) + user.encode("utf-8", "replace")


def _moment(claims, name):
    value = claims.get(name) if isinstance(claims, dict) else ""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise HelperError(f"token has invalid claims: {name} is invalid")
    return value


def _algorithms():
    """{method: algorithm} of all that etcd takes."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import padding
    from jwt import algorithms as known

    class Hmac(known.HMACAlgorithm):
        def prepare_key(self, key):
            return key  # any bytes, those of a PEM file too

    class Pss(known.RSAPSSAlgorithm):
        def verify(self, msg, key, sig):
            # Older releases of etcd salt with as much as fits.
            scheme = padding.PSS(mgf=padding.MGF1(self.hash_alg()), salt_length=padding.PSS.AUTO)
            try:
                key.verify(sig, msg, scheme, self.hash_alg())
            except InvalidSignature:
                return False
            return True

    found = {"EdDSA": known.OKPAlgorithm()}
    for bits in (256, 384, 512):
        found[f"HS{bits}"] = Hmac(getattr(Hmac, f"SHA{bits}"))
        found[f"RS{bits}"] = known.RSAAlgorithm(getattr(known.RSAAlgorithm, f"SHA{bits}"))
        found[f"PS{bits}"] = Pss(getattr(Pss, f"SHA{bits}"))
        found[f"ES{bits}"] = known.ECAlgorithm(getattr(known.ECAlgorithm, f"SHA{bits}"))
    return found


def _keys(method, options):
    """(private or None, public) key objects. Errors: HelperError."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    private, public = _read(options.get("priv-key")), _read(options.get("pub-key"))
    if method.startswith("HS"):
        if not private:
            raise HelperError(MISSING_KEY)
        return private, private
    kinds = {
        "RS": (rsa.RSAPrivateKey, rsa.RSAPublicKey),
        "PS": (rsa.RSAPrivateKey, rsa.RSAPublicKey),
        "ES": (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey),
        "Ed": (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey),
    }[method[:2]]
    private_key = _private(private, kinds[0]) if private else None
    public_key = _public(public, kinds[1]) if public else None
    if private_key is None:
        if public_key is None:
            raise HelperError(MISSING_KEY)
        return None, public_key
    own = private_key.public_key()
    if public_key is not None:
        pair = [key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in (own, public_key)]
        if pair[0] != pair[1]:
            raise HelperError(KEY_MISMATCH)
    return private_key, own


def _read(path):
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as err:
        raise HelperError(f"auth: invalid auth options: cannot read {path}: {err.strerror}") from None


def _private(pem, kind):
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as err:
        raise HelperError(f"auth: invalid private key: {_one_line(err)}") from None
    if not isinstance(key, kind):
        raise HelperError(f"auth: the private key is not of the kind that the sign-method needs: {type(key).__name__}")
    return key


def _public(pem, kind):
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from cryptography.x509 import load_pem_x509_certificate

    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError):
        try:
            key = load_pem_x509_certificate(pem).public_key()  # a certificate will do, as in etcd
        except (ValueError, TypeError) as err:
            raise HelperError(f"auth: invalid public key: {_one_line(err)}") from None
    if not isinstance(key, kind):
        raise HelperError(f"auth: the public key is not of the kind that the sign-method needs: {type(key).__name__}")
    return key


def _one_line(err):
    return " ".join(str(err).split()) or type(err).__name__


def main(asked):
    try:
        signer = Signer(asked["jwt"])
    except HelperError as err:
        say_ready(asked, str(err))
        return

    def handle(kind, request):
        if kind == SIGN:
            return signer.sign(request[8:], int.from_bytes(request[:8], "little"))
        return signer.verify(request)

    serve(asked, "etcdfast-jwt", handle)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)
