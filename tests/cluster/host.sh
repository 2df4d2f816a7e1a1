#!/usr/bin/env bash
# Process 1 of a test host, in namespaces of its own: makes its mounts private, waits for its network card, becomes its sshd.
# host.sh FOLDER NAME ADDRESS [sshd's further options]      FOLDER: the hosts' common one (hosts.py)
set -euo pipefail
folder="$1" name="$2" address="$3"
shift 3
own="$folder/$name"
mount --make-rprivate /
mount --bind "$own/ray" /tmp/ray
mount --bind "$own/home" "$folder/home"
mount --bind "$folder/passwd" /etc/passwd
mount --bind "$folder/addresses" /etc/hosts
mount -t tmpfs -o size=1g shm /dev/shm
hostname "$name"
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip addr add "$address/24" dev eth0
ip link set eth0 up
exec /usr/sbin/sshd -D -f /dev/null -E "$own/sshd.log" -o ListenAddress="$address" -o HostKey="$folder/host_key" \
    -o AuthorizedKeysFile="$folder/key.pub" -o StrictModes=no -o PidFile=none -o UsePAM=no -o PasswordAuthentication=no \
    -o PermitRootLogin=prohibit-password -o MaxSessions=50 -o MaxStartups=50 "$@"
