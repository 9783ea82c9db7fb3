"""What is refused before a sweep on S3 starts, against a real S3 server:
one line that says the fix.
"""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import s3_server

from sat_ray.storage.preflight import check_readable, check_writable
from sat_ray.storage.s3_preflight import check_s3
from sat_ray.storage.store import Storage

KEYS = {
    "AWS_ACCESS_KEY_ID": "",
    "AWS_SECRET_ACCESS_KEY": "",
    "AWS_EC2_METADATA_DISABLED": "true",
    "HOME": "/nonexistent",
}
REFUSED = [
    pytest.param(
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
        r"AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID",
        id="a wrong secret",
    ),
    pytest.param(
        {"AWS_SECRET_ACCESS_KEY": ""},
        r"AWS_SECRET_ACCESS_KEY is not set",
        id="half of the credentials",
    ),
    pytest.param(
        KEYS, r"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE", id="no credentials"
    ),
    pytest.param(
        {"AWS_ACCESS_KEY_ID": s3_server.STRANGER},
        r"allow s3:ListBucket on arn:aws:s3:::tests-bucket to",
        id="no permission",
    ),
    pytest.param(
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        r"http://127.0.0.1:9 does not answer; .* AWS_ENDPOINT_URL",
        id="no server",
    ),
    pytest.param(
        {"AWS_ENDPOINT_URL": "nonsense"},
        r"Invalid endpoint: nonsense; correct .*AWS_ENDPOINT_URL",
        id="no URL",
    ),
    pytest.param(
        {"AWS_PROFILE": "nobody"},
        r"nobody.* could not be found; correct AWS_PROFILE",
        id="no such profile",
    ),
]


@pytest.mark.parametrize(("changes", "fix"), REFUSED)
def test_what_s3_refuses_is_one_line_with_the_fix(
    s3: Storage, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], fix: str
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=fix) as caught:
        check_writable(s3)
    assert str(caught.value).startswith(f"storage {s3.uri}") and "\n" not in str(caught.value)
    assert s3_server.SECRET_KEY not in str(caught.value)


def test_what_is_only_read_need_not_permit_a_listing(
    s3: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_readable(s3.uri, "/not/on/s3", "models:/x/1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.STRANGER)
    check_readable(f"{s3.uri}/weights.pt")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY does not belong to"):
        check_readable(f"{s3.uri}/weights.pt")


@pytest.mark.parametrize(
    ("uri", "fix"),
    [
        (
            "s3://not-there/x",
            (
                r"create bucket not-there at http://127.0.0.1:\d+, or correct its name in "
                r"--storage "
                r"or SAT_RAY_STORAGE"
            ),
        ),
        ("s3://Not_A_Name/x", r"correct the bucket's name in --storage"),
        ("s3:///x", r"storage must name a bucket, s3://bucket/prefix, got s3:///x"),
    ],
)
def test_a_bucket_that_is_not_there_is_named_with_the_fix(s3: Storage, uri: str, fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        check_s3(uri)


def test_what_names_a_place_is_named_where_it_is_not_there(s3: Storage) -> None:
    for uri, fix in (
        ("s3://not-there/x", r"create bucket not-there at .*, or correct its name in data\.path$"),
        ("s3://Not_A_Name/x", r"correct the bucket's name in data\.path$"),
    ):
        with pytest.raises(ValueError, match=f"^data\\.path .*{fix}"):
            check_readable(uri, field="data.path")


def test_a_bucket_that_can_be_used_passes_and_keeps_no_probe(s3: Storage) -> None:
    check_s3(s3.uri)
    check_s3(f"s3://{s3.uri.split('/')[2]}")  # the whole bucket
    assert s3.names("") == []


@pytest.fixture
def store() -> Iterator[tuple[str, dict[str, object]]]:
    """Run a store that keeps whatever it is sent, conditions and signatures unread;
    set `refuse` or `garble` to make it worse.
    """
    behaviour: dict[str, object] = {}
    kept: dict[str, bytes] = {}

    class Store(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, reply = (
                200,
                b"<ListBucketResult/>" if "list-type" in self.path else kept.get(self.path, b""),
            )
            if behaviour.get("refuse") == self.command:
                status, reply = 403, b"<Error><Code>AccessDenied</Code></Error>"
            elif (
                self.command == "PUT"
                and self.headers.get("If-None-Match")
                and behaviour.get("conditions")
            ):
                status, reply = 412, b"<Error><Code>PreconditionFailed</Code></Error>"
            elif self.command == "PUT":
                kept[self.path], reply = (b"garbled" if behaviour.get("garble") else body), b""
            elif self.command == "DELETE":
                kept.pop(self.path, None)
                status, reply = 204, b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_PUT = do_DELETE = answer  # noqa: N815

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    behaviour["kept"] = kept
    yield f"http://127.0.0.1:{server.server_port}", behaviour
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("behaviour", "fix"),
    [
        (
            {},
            (
                r"ignores If-None-Match, so two attempts could both commit a result; use a store "
                r"that "
                r"honours it"
            ),
        ),
        ({"conditions": True, "garble": True}, r"gives back other bytes than were written"),
        (
            {"conditions": True, "refuse": "PUT"},
            r"cannot write \(AccessDenied\): allow s3:PutObject on arn:aws:s3:::bucket/a/b/\* ",
        ),
        (
            {"conditions": True, "refuse": "DELETE"},
            r"cannot delete \(AccessDenied\): allow s3:DeleteObject on arn:aws:s3:::bucket/a/b/\* ",
        ),
        ({"conditions": True}, ""),
    ],
)
def test_a_store_that_would_lose_or_double_results_is_refused(
    store: tuple[str, dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
    behaviour: dict[str, object],
    fix: str,
) -> None:
    endpoint, settings = store
    settings |= behaviour
    for name, value in s3_server.environment(0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(
        "AWS_ENDPOINT_URL", endpoint.replace("//", "//someone:hidden@") if fix else endpoint
    )
    if not fix:
        check_s3("s3://bucket/a/b")
        assert settings["kept"] == {}
        return
    with pytest.raises(ValueError, match=fix) as caught:
        check_s3("s3://bucket/a/b")
    assert "hidden" not in str(caught.value) and not re.search(r"\n", str(caught.value))
