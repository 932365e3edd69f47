"""A time-stamping authority on this machine: a root, a certificate for stamps, and a server over openssl."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CONFIG = """
[ tsa ]
default_tsa = here
[ here ]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
accuracy = secs:1
ordering = no
tsa_name = no
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""


def make_authority(folder: Path, name: str = "Stamps") -> Path:
    """Make a root, a certificate for stamps and the configuration; returns the root's certificate."""
    folder.mkdir(parents=True)
    now = datetime.now(UTC)
    keys = {who: rsa.generate_private_key(public_exponent=65537, key_size=2048) for who in ("root", "tsa")}
    names = {who: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {who}")]) for who in keys}
    for who, key in keys.items():
        built = (
            x509.CertificateBuilder()
            .subject_name(names[who])
            .issuer_name(names["root"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=who == "root", path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if who == "tsa":
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
            above = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["root"].public_key())
            built = built.add_extension(usage, critical=True).add_extension(above, critical=False)
        certificate = built.sign(keys["root"], hashes.SHA256())
        (folder / f"{who}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = keys["tsa"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "tsa.key").write_bytes(private)
    (folder / "serial").write_text("01\n")
    (folder / "tsa.cnf").write_text(CONFIG.format(folder=folder))
    return folder / "root.pem"


@contextmanager
def serve_authority(folder: Path, *, replay: bytes | None = None) -> Iterator[str]:
    """Serve the authority on a free port of this machine; yields its address.

    Args:
        folder: Where :func:`make_authority` made it.
        replay: Answer every question with this.

    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = self.rfile.read(int(self.headers["Content-Length"]))
            answer = replay
            if answer is None:
                (folder / "query.tsq").write_bytes(question)
                words = ["-queryfile", folder / "query.tsq", "-config", folder / "tsa.cnf", "-section", "here"]
                command = ["openssl", "ts", "-reply", *map(str, words), "-out", str(folder / "reply.tsr")]
                subprocess.run(command, check=True, capture_output=True)
                answer = (folder / "reply.tsr").read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
