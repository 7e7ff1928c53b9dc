"""Why a broker does not take us, in words of one line: what happened, what it means, what to set. Pure."""

import socket
import ssl
from pathlib import Path

from fedfleet.link.config import is_this_machine

__all__ = ["why", "why_refused", "why_unusable"]

_WRONG = "user name or password is wrong: see username and password_file"
_UNKNOWN = "not authorized: it knows no such user name (username), or wants a password or a certificate"
_REFUSALS = {
    1: "it does not speak MQTT 3.1.1",
    2: "it rejects the client id",
    3: "it is unavailable",
    4: _WRONG,
    5: _UNKNOWN,
    132: "it does not speak this version of MQTT",
    133: "it rejects the client id",
    134: _WRONG,
    135: _UNKNOWN,
    136: "it is unavailable",
    137: "it is busy",
    138: "it has banned this client",
    149: "it does not take packets of that size",
    151: "its quota is used up",
    159: "it takes no more connections for now",
}
_EXPIRED, _NOT_YET, _OTHER_NAME, _OTHER_ADDRESS = 10, 9, 62, 64
_OTHER_AUTHORITY = {2, 7, 18, 19, 20, 21}  # X509_V_ERR: issuer unknown, signature wrong, self-signed
_OURS_WANTED = "it wants a certificate of ours: set cert_file and key_file"
_OURS_FOREIGN = "it does not accept our certificate (cert_file): it trusts another authority"
_NO_TLS = "it does not speak TLS on this port: is it the right one?"
_ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _OURS_WANTED,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": _OURS_WANTED,
    "TLSV1_ALERT_UNKNOWN_CA": _OURS_FOREIGN,
    "TLSV1_ALERT_DECRYPT_ERROR": _OURS_FOREIGN,
    "SSLV3_ALERT_BAD_CERTIFICATE": _OURS_FOREIGN,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _OURS_FOREIGN,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate (cert_file) has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our certificate (cert_file) was revoked",
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "UNEXPECTED_EOF_WHILE_READING": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "HTTP_REQUEST": _NO_TLS,
    "UNSUPPORTED_PROTOCOL": "it speaks neither TLS 1.2 nor 1.3",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it speaks neither TLS 1.2 nor 1.3",
}


def why_refused(code: int) -> str:
    """Return the words of a CONNACK's return code (MQTT 3.1.1) or reason code (MQTT 5)."""
    return _REFUSALS.get(code, f"code {code}")


def why(error: Exception, host: str, *, tls: bool) -> str:
    """Return why no connection to a broker on ``host`` could be made, with TLS or without."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _why_not_verified(error, host)
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "unknown"
        return _ALERTS.get(reason, f"TLS fails: {reason.lower().replace('_', ' ')}")
    for kind, words in _plain(host, tls=tls).items():
        if isinstance(error, kind):
            return words
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _plain(host: str, *, tls: bool) -> dict[type[OSError], str]:
    there = "`fedfleet broker` starts a broker on this machine" if is_this_machine(host) else "does it run?"
    expects = "a certificate (cert_file) or user name" if tls else "TLS (ca_file)"
    closed = f"it closed the connection instead of answering: does it expect {expects}?"
    return {
        TimeoutError: "no answer in time",
        ConnectionRefusedError: f"connection refused: nothing listens there; {there}",
        ConnectionResetError: closed,
        BrokenPipeError: closed,
        socket.gaierror: "no machine of this name is known here",
    }


def _why_not_verified(error: ssl.SSLCertVerificationError, host: str) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "its certificate has expired"
    if code == _NOT_YET:
        return "its certificate is not valid yet: is the clock of this machine right?"
    if code in {_OTHER_NAME, _OTHER_ADDRESS}:
        return f"its certificate is not for {host}: set host to a name that stands in the certificate"
    if code in _OTHER_AUTHORITY:
        return "its certificate is not from the authority in ca_file"
    return f"its certificate cannot be verified: {error.verify_message}"


def why_unusable(error: OSError, path: Path, *, holds: str) -> str:
    """Return why a PEM file that should hold this cannot be used."""
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key belongs to another certificate"
        return f"expected {holds}, as PEM" + _encrypted(path)
    return (error.strerror or str(error)).lower()


def _encrypted(path: Path) -> str:
    try:
        is_encrypted = b"ENCRYPTED" in path.read_bytes()[:65_536]
    except OSError:
        return ""
    return (
        ", got an encrypted key: store it without a password, readable by this user only"
        if is_encrypted
        else ""
    )
