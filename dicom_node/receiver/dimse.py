"""DIMSE command sets as bytes (PS3.7 section 6.3 and annex E): read without trust, responses written."""

from __future__ import annotations

from struct import Struct

C_STORE_RQ, C_ECHO_RQ, N_ACTION_RQ, N_EVENT_REPORT_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0130, 0x0100, 0x0FFF
N_CREATE_RQ, N_SET_RQ = 0x0140, 0x0120
RESPONSE = 0x8000
NO_DATA_SET = 0x0101

# Statuses (PS3.4 annex B.2.3, PS3.7 annex C).
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DATA_SET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
STORED_BUT_QUARANTINED = 0xB007
CLASS_NOT_SUPPORTED = 0x0122
INVALID_INSTANCE = 0x0117
UNRECOGNISED_OPERATION = 0x0211
NO_SUCH_ACTION = 0x0123
NO_SUCH_INSTANCE = 0x0112
INVALID_ARGUMENT = 0x0115
PROCESSING_FAILURE = 0x0110

CLASS, REQUESTED_CLASS, FIELD, MESSAGE_ID, MESSAGE_ID_RESPONDED = 0x0002, 0x0003, 0x0100, 0x0110, 0x0120
DATA_SET_TYPE, STATUS, ERROR_COMMENT, INSTANCE, REQUESTED_INSTANCE = 0x0800, 0x0900, 0x0902, 0x1000, 0x1001
EVENT_TYPE, ACTION_TYPE = 0x1002, 0x1008
MAX_COMMAND_SET = 1 << 16

_ELEMENT = Struct("<HHI")
_US = Struct("<HHIH")


class CommandError(ValueError):
    """The command set is not one."""


class Command(dict[int, bytes]):
    """A command set: element number → raw value."""

    def number(self, element: int) -> int | None:
        raw = self.get(element)
        return int.from_bytes(raw, "little") if raw is not None and len(raw) == 2 else None

    def uid(self, element: int) -> str:
        return self.get(element, b"").decode("latin-1").strip(" \0")

    @property
    def has_data_set(self) -> bool:
        return self.number(DATA_SET_TYPE) != NO_DATA_SET


def parse_command(raw: bytes) -> Command:
    """Read a command set (implicit VR little endian, group 0000 only). Raises CommandError."""
    command, pos, end = Command(), 0, len(raw)
    while pos < end:
        if end - pos < 8:
            raise CommandError("the command set is cut short")
        group, number, length = _ELEMENT.unpack_from(raw, pos)
        pos += 8
        if group != 0 or pos + length > end:
            raise CommandError("the command set holds something that is not a command element")
        command[number] = raw[pos : pos + length]
        pos += length
    if command.number(FIELD) is None or command.number(DATA_SET_TYPE) is None:
        raise CommandError("the command set names no command")
    return command


def _us(number: int, value: int) -> bytes:
    return _US.pack(0, number, 2, value)


def _ui(number: int, uid: str) -> bytes:
    raw = uid.encode("latin-1")
    raw += b"\0" * (len(raw) % 2)
    return _ELEMENT.pack(0, number, len(raw)) + raw


def with_group_length(elements: bytes) -> bytes:
    return _ELEMENT.pack(0, 0, 4) + len(elements).to_bytes(4, "little") + elements


def response(command: Command, status: int, comment: str = "") -> bytes:
    """The response to `command` without a data set."""
    field = (command.number(FIELD) or 0) | RESPONSE
    requested = CLASS not in command and REQUESTED_CLASS in command
    class_uid = command.uid(REQUESTED_CLASS if requested else CLASS)
    instance = command.uid(REQUESTED_INSTANCE if requested else INSTANCE)
    parts = [_ui(CLASS, class_uid)] if class_uid and len(class_uid) <= 64 else []
    parts += [_us(FIELD, field), _us(MESSAGE_ID_RESPONDED, command.number(MESSAGE_ID) or 0)]
    parts += [_us(DATA_SET_TYPE, NO_DATA_SET), _us(STATUS, status)]
    if comment:
        raw = comment.encode("ascii", "replace")[:64]
        raw += b" " * (len(raw) % 2)
        parts.append(_ELEMENT.pack(0, ERROR_COMMENT, len(raw)) + raw)
    if instance and len(instance) <= 64:
        parts.append(_ui(INSTANCE, instance))
    if ACTION_TYPE in command and (action := command.number(ACTION_TYPE)) is not None:
        parts.append(_us(ACTION_TYPE, action))
    return with_group_length(b"".join(parts))


def event_report_rq(class_uid: str, instance: str, event_type: int, message_id: int = 1) -> bytes:
    """An N-EVENT-REPORT request that a data set follows (PS3.7 section 10.1.1)."""
    parts = [_ui(CLASS, class_uid), _us(FIELD, N_EVENT_REPORT_RQ), _us(MESSAGE_ID, message_id), _us(DATA_SET_TYPE, 1)]
    return with_group_length(b"".join([*parts, _ui(INSTANCE, instance), _us(EVENT_TYPE, event_type)]))
