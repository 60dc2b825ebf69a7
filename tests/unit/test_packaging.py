"""What packaging/ holds is right as far as it can be told without Docker and systemd running."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from etcdfast.config.load import load
from tests.unit.test_settings import Notices

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
COMPOSE = PACKAGING / "compose.yaml"


def test_the_sample_file_is_read_without_a_complaint():
    notices = Notices()
    config = load([f"--config-file={PACKAGING / 'etcd.conf.yml'}"], {}, notices)
    assert (config.name, config.quota_bytes, config.peer_client_cert_auth) == ("m1", 8 << 30, True)
    told = [line for line in notices.lines if line[0] == "warn"]
    assert told == []


def test_what_the_sample_has_commented_out_is_read_too(tmp_path):
    text = re.sub(r"^( *)#(?=[a-z-]+: )", r"\1", (PACKAGING / "etcd.conf.yml").read_text(), flags=re.MULTILINE)
    text = re.sub(r"^(log-outputs: \[stderr\]|initial-cluster: .*)$", "", text, flags=re.MULTILINE)
    path = tmp_path / "all.yml"
    path.write_text(text)
    notices = Notices()
    config = load([f"--config-file={path}"], {}, notices)
    assert (config.log_rotation.maxbackups, config.corrupt_check_time) == (10, 3600)
    assert config.client_crl_file == "/etc/etcd/pki/revoked.crl"
    assert not [line for line in notices.lines if "unknown key" in line[1]]


def test_each_member_of_the_compose_file_is_configured():
    plain = yaml.safe_load(COMPOSE.read_text())
    assert set(plain["services"]) == set(plain["volumes"]) == {"m1", "m2", "m3"}
    for name, service in plain["services"].items():
        notices = Notices()
        config = load([], service["environment"], notices)
        assert config.name == service["hostname"] == name
        assert dict(config.initial_members)[name] == config.initial_advertise_peer_urls
        assert [line for line in notices.lines if line[0] == "warn"] == []
        assert f"{name}:/var/lib/etcd" in service["volumes"]
        assert config.cert_file == f"/certs/{name}.crt"


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker command to read the file with")
def test_docker_reads_the_compose_file():
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose")
    done = subprocess.run(["docker", "compose", "-f", COMPOSE, "config", "-q"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_has_what_it_copies_and_links():
    text = (PACKAGING / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
    scripts = re.search(r"\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
    for command in re.findall(r"/opt/etcdfast/bin/(\w+) ", text):
        assert f"{command} =" in scripts or command == "pip"
    assert re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", text, re.MULTILINE) == ['["docker-entrypoint"]', '["etcdfast"]']


@pytest.mark.parametrize(
    "arguments, run",
    [
        ([], "etcdfast"),
        (["--name", "a b"], "etcdfast --name a b"),
        (["etcd", "-x"], "etcd -x"),
    ],
)
def test_the_entry_point(tmp_path, arguments, run):
    for name in ("etcd", "etcdfast"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([PACKAGING / "docker-entrypoint", *arguments], env=environ, capture_output=True, text=True)
    assert done.stdout == f"{run}\n"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_certificates_for_the_compose_file(tmp_path):
    for _ in range(2):  # what is there stays
        subprocess.run([PACKAGING / "make-certs", tmp_path, "m1", "m2"], check=True)
    assert {path.name for path in tmp_path.iterdir()} - {"ca.srl"} == {
        f"{name}.{kind}" for name in ("ca", "m1", "m2", "client") for kind in ("crt", "key")
    }
    checked = subprocess.run(
        ["openssl", "verify", "-CAfile", "ca.crt", "m1.crt", "m2.crt", "client.crt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    certificate = x509.load_pem_x509_certificate((tmp_path / "m1.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["m1", "localhost"]
    assert (tmp_path / "m1.key").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_reads_the_unit(tmp_path):
    unit = (PACKAGING / "etcdfast.service").read_text()
    path = tmp_path / "etcdfast.service"
    # The command need not be installed here, nor the user exist.
    path.write_text(unit.replace("/usr/bin/etcdfast", "/bin/true").replace("User=etcd", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True)
    assert "etcdfast.service" not in done.stderr, done.stderr
    wanted = ("Type=notify", "ExecReload=/bin/kill -HUP $MAINPID", "KillMode=mixed", "WatchdogSec=")
    assert all(f"\n{line}" in unit for line in wanted)
