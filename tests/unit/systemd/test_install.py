"""The installer, on folders that are to become hosts."""

import json
import os
import pwd
import stat
from pathlib import Path

import pytest

from systemd import install
from systemd.install import InstallError, check_environment, check_user, files, find_gpus, main

UNITS = "usr/local/lib/systemd/system"


def lay(folder, *words):
    return main(["install", "--destdir", str(folder), *words])


def laid(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A virtual environment as far as the installer looks at it, where the units may see it."""
    monkeypatch.setattr(install, "HIDDEN", ("/nowhere",))
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    for name in ("imagegen-broker", "imagegen-worker", "python3"):
        (folder / "bin" / name).write_text("#!/bin/sh\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


def test_a_folder_gets_all_of_both_roles(tmp_path):
    assert lay(tmp_path, "--prefix", "/srv/fleet") == 0
    assert {
        f"{UNITS}/imagegen-broker.service",
        f"{UNITS}/imagegen-worker@.service",
        f"{UNITS}/imagegen-workers.target",
        "usr/local/lib/sysusers.d/imagegen.conf",
        "usr/local/share/doc/imagegen/systemd.md",
        "etc/imagegen/broker.toml",
        "etc/imagegen/worker.toml",
    } <= laid(tmp_path)
    for unit in (tmp_path / UNITS).glob("*.service"):
        assert "ExecStart=/srv/fleet/bin/imagegen-" in unit.read_text()
        assert "@PREFIX@" not in unit.read_text()
        assert stat.S_IMODE(unit.stat().st_mode) == 0o644
    assert (tmp_path / "etc/imagegen/keys/clients").is_dir()


def test_a_host_of_one_role_gets_no_more(tmp_path):
    lay(tmp_path, "--roles", "worker")
    assert not any("broker.service" in name or "broker.toml" in name for name in laid(tmp_path))
    assert (tmp_path / UNITS / "imagegen-worker@.service").is_file()


def test_a_gateway_is_laid_down_where_it_is_asked_for(tmp_path):
    lay(tmp_path)
    assert not any("imagegen-gateway" in name or "gateway.toml" in name for name in laid(tmp_path))
    lay(tmp_path, "--roles", "gateway")
    assert {f"{UNITS}/imagegen-gateway.service", "etc/imagegen/gateway.toml"} <= laid(tmp_path)
    main(["uninstall", "--destdir", str(tmp_path)])
    assert not any("gateway.service" in name for name in laid(tmp_path))


def test_what_is_old_is_written_anew_and_the_operators_settings_are_kept(tmp_path, capsys):
    lay(tmp_path)
    settings, unit = tmp_path / "etc/imagegen/worker.toml", tmp_path / UNITS / "imagegen-broker.service"
    settings.write_text("mine")
    unit.write_text("old")
    capsys.readouterr()
    lay(tmp_path)
    assert settings.read_text() == "mine"
    assert "Type=notify" in unit.read_text()
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote")] == [f"wrote {unit}"]


def test_a_dry_run_tells_and_does_nothing(tmp_path, capsys):
    assert lay(tmp_path, "--dry-run") == 0
    assert "would write" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    lay(tmp_path)
    before = laid(tmp_path)
    assert main(["uninstall", "--destdir", str(tmp_path), "--dry-run", "--purge"]) == 0
    assert laid(tmp_path) == before


def test_uninstalling_leaves_settings_unless_they_are_to_go_too(tmp_path, capsys):
    lay(tmp_path)
    main(["uninstall", "--destdir", str(tmp_path)])
    assert laid(tmp_path) == {"etc/imagegen/broker.toml", "etc/imagegen/worker.toml"}
    drop_in = tmp_path / "etc/systemd/system/imagegen-worker@.service.d/keys.conf"
    foreign = tmp_path / "etc/systemd/system/other.service.d/keys.conf"
    for path in (drop_in, foreign, tmp_path / "var/lib/imagegen-broker/targets.json"):
        path.parent.mkdir(parents=True)
        path.write_text("")
    main(["uninstall", "--destdir", str(tmp_path)])
    said = capsys.readouterr().out
    assert drop_in.is_file()
    assert all(
        path in said for path in ("imagegen-worker@.service.d", "/etc/imagegen", "/var/lib/imagegen-broker")
    )
    main(["uninstall", "--destdir", str(tmp_path), "--purge"])
    assert laid(tmp_path) == {str(foreign.relative_to(tmp_path))}


@pytest.mark.parametrize(("version", "told"), [(252, False), (254, True)])
def test_the_backoff_is_there_where_systemd_knows_it(version, told):
    names = [str(file.path) for file in files(Path("/opt/imagegen"), ("broker", "worker"), version)]
    assert any(name.endswith("imagegen-worker@.service.d/10-backoff.conf") for name in names) == told


def test_gpus_are_those_that_the_workers_command_tells(environment):
    (environment / "bin/imagegen-worker").write_text(
        "#!/bin/sh\n" + "".join(f"echo '{json.dumps({'number': number})}'\n" for number in (0, 1))
    )
    assert find_gpus(environment) == ["0", "1"]
    (environment / "bin/imagegen-worker").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(InstallError, match="exited with status 3; select GPUs with --gpus"):
        find_gpus(environment)


def test_an_environment_that_is_not_there_is_told_how_to_make(environment):
    check_environment(environment, ("broker", "worker"))
    with pytest.raises(InstallError, match=r"imagegen-gateway does not exist; .* '\.\[cli,broker,gateway\]'"):
        check_environment(environment, ("broker", "gateway"))
    (environment / "bin/python3").unlink()
    with pytest.raises(
        InstallError, match=r"python3 does not exist; create the environment first: python3 -m venv .*"
    ):
        check_environment(environment, ("broker", "worker"))


def linked(environment, private):
    (environment / "bin/python3").rename(private / "python3")
    (environment / "bin/python3").symlink_to(private / "python3")


def linked_in_a_chain(environment, private):
    linked(environment, private)
    (environment / "bin/python3").rename(environment / "python")
    (environment / "bin/python3").symlink_to("../python")


def linked_through_a_folder(environment, private):
    """As pyenv and uv name a release by a link to its folder."""
    (private / "releases").mkdir()
    (environment / "bin/python3").rename(private / "releases/python3")
    (environment / "3.11").symlink_to(private / "releases")
    (environment / "bin/python3").symlink_to(environment / "3.11/python3")


def linked_out_again(environment, private):
    """All it leads to can be seen, but not the link on the way."""
    (environment / "bin/python3").rename(environment / "python")
    (private / "python3").symlink_to(environment / "python")
    (environment / "bin/python3").symlink_to(private / "python3")


def copied(environment, private):
    """As `python3 -m venv --copies` does: the library stays where it was."""
    (environment / "pyvenv.cfg").write_text(f"home = {private}\nversion = 3.11.2\n")


def moved(environment, private):
    """Scripts name the interpreter by where the environment was made."""
    (private / "python3").write_text("")
    (environment / "bin/imagegen-broker").write_text(f"#!{private}/python3 -I\n")


def elsewhere(environment, private):
    environment.rename(private / "environment")
    environment.symlink_to(private / "environment")


@pytest.mark.parametrize(
    "hide", [linked, linked_in_a_chain, linked_through_a_folder, linked_out_again, copied, moved, elsewhere]
)
def test_an_environment_that_the_units_could_not_see_is_refused(hide, environment, tmp_path, monkeypatch):
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(install, "HIDDEN", (str(private),))
    check_environment(environment, ("broker",))
    hide(environment, private)
    with pytest.raises(InstallError, match=r"private.* is hidden from the units"):
        check_environment(environment, ("broker",))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_an_environment_that_the_units_user_may_not_read_is_refused(environment):
    check_user(environment, ("broker",), user=pwd.getpwuid(0).pw_name)
    (environment / "bin").chmod(0o700)  # as a umask of 077 makes it
    with pytest.raises(InstallError, match=r"nobody can't run .*Permission denied.*run chmod -R go\+rX"):
        check_user(environment, ("broker",), user="nobody")
    (environment / "bin/imagegen-broker").write_text("#!/bin/sh\necho 'No module named click' >&2\nexit 1\n")
    with pytest.raises(InstallError, match="imagegen-broker: No module named click"):
        check_user(environment, ("broker",), user=pwd.getpwuid(0).pw_name)


def test_only_root_changes_a_host(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["install"]) == 1
    assert "only root can change the host" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["install", "--roles", "router"], "'router' must be some of broker, worker, gateway"),
        (["install", "--gpus", "first"], "'first' must be numbers or UUIDs"),
        (["install", "--gpus", "0;reboot"], "must be numbers or UUIDs"),
        (["install", "--prefix", "here"], "'here' must be an absolute path"),
        (["install", "--prefix", "/opt/100%"], "without spaces or"),
        (["remove"], "invalid choice"),
    ],
)
def test_wrong_words_are_explained(words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
