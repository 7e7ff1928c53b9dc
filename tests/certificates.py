"""Certificates for tests of mutual TLS."""

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedfleet.link.config import BrokerConfig
from fedfleet.link.options import Options, options_for


class Authority:
    """A certificate authority for one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        builder = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        self._write("ca.pem", builder.sign(self._key, hashes.SHA256()))

    def issue(self, name: str, file: str, *, valid: tuple[dt.timedelta, dt.timedelta] | None = None) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = self._builder(subject, key, valid).add_extension(
            x509.ExtendedKeyUsage(usages), critical=False
        )
        if name == "localhost":
            names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
            builder = builder.add_extension(names, critical=False)
        self._write(f"{file}.pem", builder.sign(self._key, hashes.SHA256()))
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (self.folder / f"{file}.key").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))

    def options(self, file: str) -> Options:
        ca, cert, key = (self.folder / name for name in ("ca.pem", f"{file}.pem", f"{file}.key"))
        return options_for(BrokerConfig(host="localhost", ca_file=ca, cert_file=cert, key_file=key))

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        valid: tuple[dt.timedelta, dt.timedelta] | None = None,
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        begin, end = valid or (dt.timedelta(days=-1), dt.timedelta(days=1))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begin)
            .not_valid_after(now + end)
        )

    def _write(self, name: str, certificate: x509.Certificate) -> None:
        (self.folder / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
