"""
What is to be said of a certificate, by those who meet one and by those who serve one.
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.x509.oid import NameOID


def namesOf(certificate: x509.Certificate) -> list[str]:
    """The host names and IP addresses that a certificate is for, as verification sees them."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        # The common name of the subject has not counted for years.
        return []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def ownerOf(name: x509.Name) -> str:
    """A subject or an issuer, as people call it."""
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME) or name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(common[0].value) if common else name.rfc4514_string() or "somebody without a name"


def isSelfSigned(certificate: x509.Certificate) -> bool:
    """Whether nobody vouches for it but itself."""
    return certificate.subject == certificate.issuer


def whyNotNow(certificate: x509.Certificate, now: datetime.datetime | None = None) -> str | None:
    """
    Why a certificate does not count at this time, as the end of a sentence that begins with it.

    :param now: the time, with its zone; what the wall clock says by default.
    :return: ``None`` if it counts.
    """
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
    """For how many days a certificate counts from now on; negative when it has expired."""
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    return left.total_seconds() / 86_400


def _written(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
