#!/bin/sh
# Run by tools/machine.py as the first process of new namespaces: makes a root of its own over this machine's, and boots
# a systemd in it. Nothing that it writes, mounts, or empties (it empties /tmp) is this machine's.
# machine.sh STAGE INIT [FROM TO]...: an empty folder, the init, and folders to show read-only at a place.
set -eu
umask 022
stage=$1 init=$2
shift 2
root=$stage/root
mount -t tmpfs tmpfs "$stage"
mkdir "$stage/upper" "$stage/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$stage/upper,workdir=$stage/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    numbers=${node#*:}
    mknod -m 666 "$root/dev/${node%%:*}" c "${numbers%:*}" "${numbers#*:}"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
: >"$root/dev/console"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
while [ $# -gt 0 ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
    shift 2
done
# What this machine has enabled is not started, nor is what would reach for its hardware and clock.
rm -rf "$root"/etc/systemd/system/* "$root"/etc/rc?.d
: >"$root/etc/fstab"
for unit in \
    systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-sysctl systemd-sysusers systemd-udevd systemd-udev-trigger \
    systemd-update-utmp systemd-timesyncd systemd-binfmt systemd-remount-fs systemd-modules-load systemd-logind \
    systemd-user-sessions systemd-firstboot systemd-random-seed kmod-static-nodes getty-static dbus; do
    ln -s /dev/null "$root/etc/systemd/system/$unit.service"
done
ln -s /dev/null "$root/etc/systemd/system/getty.target"
: >"$root/.isolated"
mkdir "$root/outside"
cd "$root"
pivot_root . outside
cd /
[ -e /.isolated ] || exit 1
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount -l /outside
# As systemd expects it: what it mounts for a service in another namespace, as credentials, must come here.
mount --make-rshared /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=unshare "$init" --system --unit=multi-user.target
