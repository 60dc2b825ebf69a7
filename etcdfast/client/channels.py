"""gRPC channels of our tools: plain or TLS, and the token of a user. Flags and their meaning are etcdctl's."""

from __future__ import annotations

import socket
import ssl

import grpc

from etcdfast.api import grpc_stubs
from etcdfast.api.pb import rpc_pb2 as pb
from etcdfast.client.security import Security, read_file


def open_channel(address: str, security: Security | None, options=()) -> grpc.Channel:
    """A channel to host:port or unix:path; `security` None makes a plain one. Errors: SecurityError, OSError."""
    if security is None:
        return grpc.insecure_channel(address, options=options)
    security.check()
    ca, key, cert = (
        read_file(name, path)
        for name, path in (("--cacert", security.cacert), ("--key", security.key), ("--cert", security.cert))
    )
    if security.skip_verify:
        ca, name = _shown_by(address, security)
        options = (*options, ("grpc.ssl_target_name_override", name))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options=options)


def token_of(channel: grpc.Channel, name: str, password: str, timeout_seconds: float) -> tuple[tuple[str, str], ...]:
    """Metadata of calls in the name of a user. Errors: grpc.RpcError."""
    request = pb.AuthenticateRequest(name=name, password=password)
    answer = grpc_stubs.Client(channel).Auth.Authenticate(request, timeout=timeout_seconds)
    return (("token", answer.token),)


def _shown_by(address: str, security: Security) -> tuple[bytes, str]:
    """The certificate that a server shows, and a name in it. gRPC cannot be told not to verify, but whom to trust."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if security.cert:
        context.load_cert_chain(security.cert, security.key)
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), 5.0) as plain, context.wrap_socket(plain) as shown:
        der = shown.getpeercert(True)
    certificate = x509.load_der_x509_certificate(der)
    names = []
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]
    except x509.ExtensionNotFound:
        pass
    names += [entry.value for entry in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return ssl.DER_cert_to_PEM_cert(der).encode(), names[0] if names else host
