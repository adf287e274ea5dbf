"""Whether an association is accepted, and with what: a decision from the request and the settings (PS3.8 section 9.3.4)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dicom_node.receiver import pdu
from dicom_node.receiver.service import Service
from dicom_node.receiver.sop_classes import ACCEPTANCE, NO_ABSTRACT_SYNTAX, is_storage, negotiate
from dicom_node.spool.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

PERMANENT, TRANSIENT = 1, 2
USER, ACSE, PRESENTATION = 1, 2, 3

_AE_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}\Z")  # PS3.5 table 6.2-1: no control character, no backslash


@dataclass(frozen=True, slots=True)
class Verdict:
    """The PDU to answer with; `contexts` is {id: (abstract, transfer syntax)}, or None where the association is rejected."""

    calling_ae: str
    answer: bytes
    contexts: dict[int, tuple[str, str]] | None = None
    max_length: int = 0
    reason: str = ""


def printable(title: str) -> str:
    """An AE title that is safe in logs and counters."""
    return title if _AE_TITLE.match(title) else "(malformed)"


def judge(body: bytes, address: str, service: Service) -> Verdict:
    """Answer an A-ASSOCIATE-RQ. Raises PduError when it is malformed."""
    request = pdu.parse_associate_rq(body)
    settings = service.settings
    calling = printable(request.calling_ae)

    def reject(result: int, source: int, reason: int, why: str) -> Verdict:
        return Verdict(calling, pdu.associate_rj(result, source, reason), reason=why)

    if not request.protocol_version & 1:
        return reject(PERMANENT, ACSE, 2, "protocol version not supported")
    if request.application_context != pdu.APPLICATION_CONTEXT:
        return reject(PERMANENT, USER, 2, "application context not supported")
    if not _AE_TITLE.match(request.called_ae):
        return reject(PERMANENT, USER, 7, "called AE title is malformed")
    if settings.called_ae and request.called_ae != settings.called_ae:
        return reject(PERMANENT, USER, 7, "called AE title is not this node's")
    if calling == "(malformed)" or not settings.allows_ae(request.calling_ae):
        return reject(PERMANENT, USER, 3, "calling AE title is not on the list")
    if not settings.allows_address(address, request.calling_ae):
        return reject(PERMANENT, USER, 3, "address is not on the list")
    if service.occupancy.total() >= settings.max_associations:
        return reject(TRANSIENT, PRESENTATION, 2, "maximum number of associations reached")
    contexts, results = {}, []
    only = settings.rule(request.calling_ae).sop_classes
    for context in request.contexts:
        abstract, proposed = context.abstract_syntax, context.transfer_syntaxes
        result, syntax = negotiate(abstract, proposed, settings.private_sop_classes)
        if only and abstract not in only and is_storage(abstract, settings.private_sop_classes):
            result = NO_ABSTRACT_SYNTAX
        results.append((context.context_id, result, syntax))
        if result == ACCEPTANCE:
            contexts[context.context_id] = (context.abstract_syntax, syntax)
    implementation = (IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION)
    answer = pdu.associate_ac(body, results, settings.max_pdu, implementation)
    return Verdict(calling, answer, contexts, request.max_length)
