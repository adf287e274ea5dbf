"""A PACS reached by DICOMweb (PS3.18): QIDO-RS to search, WADO-RS to retrieve each instance in the bytes the PACS keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from pydicom import Dataset

from dicom_node.errors import ConfigError, InputError, RefusedError, UnreachableError
from dicom_node.retrieve.plan import Found
from dicom_node.retrieve.selection import Selection
from dicom_node.spool import Spool

PAGE = 200
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_TOLD = ("StudyInstanceUID", "PatientID", "ModalitiesInStudy", "NumberOfStudyRelatedInstances")


class Web:
    """The DICOMweb service at a root URL. password_file holds "user:password"; token_file a bearer token; ca its authority.

    Raises ConfigError when a file cannot be read.
    """

    arrives_later = False

    def __init__(
        self,
        url: str,
        *,
        password_file: Path | None = None,
        token_file: Path | None = None,
        ca: Path | None = None,
        timeout: float = 60.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise InputError(
                f"{url!r} is no DICOMweb address: write it as https://pacs.example/dicom-web, without a password."
            )
        self._url, self._timeout = url.rstrip("/"), timeout
        self._session = _session(password_file, token_file, ca)
        self._client = DICOMwebClient(self._url, session=self._session)
        self._client.set_http_retry_params(retry=False)
        self._at: dict[str, str] = {}

    @property
    def name(self) -> str:
        return self._url

    def find(self, selection: Selection) -> Iterator[Found]:
        seen: set[str] = set()
        for query in selection.queries():
            for answer in self._search(
                self._client.search_for_studies, search_filters=_filters(query), fields=list(_TOLD)
            ):
                uid = str(answer.get("StudyInstanceUID", ""))
                if uid and uid not in seen:
                    seen.add(uid)
                    yield _found(answer, uid)

    def instances(self, study_uid: str) -> dict[str, str]:
        found: dict[str, str] = {}
        self._at = {}
        for one in self._search(self._client.search_for_instances, study_instance_uid=study_uid):
            uid = str(one.SOPInstanceUID)
            found[uid] = str(one.get("SOPClassUID", ""))
            self._at[uid] = str(one.get("SeriesInstanceUID", ""))
        return found

    def fetch(self, study_uid: str, missing: Mapping[str, str], spool: Spool, tell: Callable[[], None]) -> None:
        for uid in sorted(missing):
            data = self._retrieve(f"{self._url}/studies/{study_uid}/series/{self._at[uid]}/instances/{uid}")
            try:
                spool.add_file(data, source=urlsplit(self._url).hostname or "DICOMWEB")
            except InputError:
                raise RefusedError(f"{self._url} sent an instance that is no DICOM file: look at its log.") from None
            tell()

    def _search(self, how: Callable[..., list[dict[str, Any]]], **keys: Any) -> Iterator[Dataset]:
        """All pages of a search; a service that ignores the offset repeats itself, which ends it."""
        offset, before = 0, None
        while True:
            rows = self._asked(lambda at=offset: how(limit=PAGE, offset=at, **keys))  # type: ignore[misc]
            if not rows or rows == before:
                return
            for row in rows:
                yield Dataset.from_json(row)
            if len(rows) < PAGE:
                return
            offset, before = offset + len(rows), rows

    def _retrieve(self, url: str) -> bytes:
        def ask() -> bytes:
            answer = self._session.get(url, headers={"Accept": AS_STORED}, timeout=self._timeout)
            answer.raise_for_status()
            return part_of(answer.content, answer.headers.get("Content-Type", ""))

        return self._asked(ask)

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            if code in (401, 403):
                raise RefusedError(
                    f"{self._url} refused the request (HTTP {code}): check the user or token given."
                ) from None
            if code in (408, 429) or code >= 500:
                raise UnreachableError(f"{self._url} answered with HTTP {code}: try again later.") from None
            raise RefusedError(f"{self._url} answered with HTTP {code}: check that it is a DICOMweb root.") from None
        except requests.RequestException as error:
            raise UnreachableError(f"{self._url} does not answer ({type(error).__name__}): try again later.") from None
        except ValueError:
            raise RefusedError(
                f"{self._url} answered with something that is not DICOMweb: check the address."
            ) from None


def part_of(body: bytes, content_type: str) -> bytes:
    """The one part of a multipart/related body (RFC 2387), byte for byte; a body of type application/dicom as it is.

    ValueError for anything else.
    """
    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_type() == "application/dicom":
        return body
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/related" or not isinstance(boundary, str):
        raise ValueError("not a multipart answer")
    mark = b"--" + boundary.encode("ascii")
    start = body.index(b"\r\n\r\n", body.index(mark)) + 4
    return body[start : body.rindex(b"\r\n" + mark)]


def _session(password_file: Path | None, token_file: Path | None, ca: Path | None) -> requests.Session:
    if password_file is not None:
        user, _, password = _secret(password_file).partition(":")
        session = create_session_from_user_pass(user, password)
    else:
        session = requests.Session()
    if token_file is not None:
        session.headers["Authorization"] = f"Bearer {_secret(token_file)}"
    if ca is not None:
        if not ca.is_file():
            raise ConfigError(f"{ca} cannot be read: name the PEM file of the service's authority.")
        session.verify = str(ca)
    return session


def _secret(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{file} cannot be read: put the user and password, or the token, there.") from None


def _filters(query: Dataset) -> dict[str, str]:
    """The query's keys that have a value, as QIDO-RS names them."""
    left_out = ("SpecificCharacterSet", "QueryRetrieveLevel")
    return {
        element.keyword: str(element.value)
        for element in query
        if element.keyword not in left_out and element.value not in (None, "")
    }


def _found(answer: Dataset, uid: str) -> Found:
    modalities = answer.get("ModalitiesInStudy") or ""
    several = [modalities] if isinstance(modalities, str) else list(modalities)
    count = answer.get("NumberOfStudyRelatedInstances")
    return Found(uid, str(answer.get("PatientID", "")), tuple(str(one) for one in several if one), int(count or 0))
