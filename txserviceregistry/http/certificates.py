"""The names, the issuer and the validity of certificates, for clients and servers."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.x509.oid import NameOID


def namesOf(certificate: x509.Certificate) -> list[str]:
    """The host names and IP addresses of a certificate, as in verification."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        # Verification ignores the common name of the subject.
        return []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def ownerOf(name: x509.Name) -> str:
    """The short name of a subject or an issuer."""
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME) or name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(common[0].value) if common else name.rfc4514_string() or "an unnamed owner"


def isSelfSigned(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer


def whyNotNow(certificate: x509.Certificate, now: datetime.datetime | None = None) -> str | None:
    """Why a certificate is not valid *now*, as the end of a sentence that begins with it; ``None`` if it is."""
    now = now or datetime.datetime.now(datetime.timezone.utc)
    if now > certificate.not_valid_after_utc:
        return f"expired on {_written(certificate.not_valid_after_utc)}"
    if now < certificate.not_valid_before_utc:
        return (
            f"is not valid before {_written(certificate.not_valid_before_utc)}, "
            f"and the clock of this machine says {_written(now)}"
        )
    return None


def daysLeft(certificate: x509.Certificate) -> float:
    """The days until a certificate expires; negative when it has expired."""
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    return left.total_seconds() / 86_400


def _written(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
